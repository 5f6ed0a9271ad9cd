"""`bf16-mixed` where the processor computes bfloat16 natively, `32-true` elsewhere: `${native_precision:}`."""

from mtp_lightning.machine import cpu_has_bfloat16


def native_precision() -> str:
    """Lightning's name of the best native training precision: emulated bfloat16 is slower than float32."""
    import torch

    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = cpu_has_bfloat16()
    return "bf16-mixed" if native else "32-true"
