"""`bf16-mixed` where the processor computes bfloat16 natively, `32-true` elsewhere: `${native_precision:}`."""

import functools


def native_precision() -> str:
    """Lightning's name of the best native training precision: emulated bfloat16 is slower than float32."""
    import torch

    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = cpu_has_bfloat16()
    return "bf16-mixed" if native else "32-true"


@functools.cache
def cpu_has_bfloat16() -> bool:
    """AVX512-BF16 or AMX on x86, FEAT_BF16 on Arm: what Linux says of the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = {flag for line in file if line.lower().startswith(("flags", "features")) for flag in line.split()}
    except OSError:
        return False  # not Linux: oneDNN's fast paths are unknown there
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
