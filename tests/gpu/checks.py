"""What only a GPU can check, and the figures that only a GPU can give. `run.sh` says how it is started.

Each check is a function of `Scale` that returns its figures, raises AssertionError where something is wrong, and
`SkippedError` where it cannot run here. On a CPU the same functions run at tiny sizes, so that none fails for a
typo.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from check_decoding import decoding, ways_to_decode
from check_kernels import documents, fused_loss, long_documents, objectives
from check_training import checkpoint_stall, compiled, probes, strategies, training
from scale import FULL, TINY, Figures, Scale, SkippedError, said

from mtp_lightning.bench.harness import describe_machine

CHECKS: dict[str, Callable[[Scale], Figures]] = {
    check.__name__: check
    for check in (
        documents, long_documents, objectives, fused_loss, ways_to_decode, decoding, compiled, training,
        checkpoint_stall, strategies, probes,
    )
}  # fmt: skip


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), default=list(CHECKS))
    options = parser.parse_args(arguments)
    scale = FULL if options.device == "cuda" else TINY
    if scale.on_gpu and not torch.cuda.is_available():
        for name in options.only:
            with said({"check": name}):
                raise SkippedError("no CUDA device; `--device cpu` runs the same code at tiny sizes")
        return 0
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(json.dumps({"machine": describe_machine(scale.torch_device, torch.get_num_threads()), "commit": commit}))
    failed = False
    for name in options.only:
        line: dict[str, Any] = {"check": name}
        with said(line):
            line |= {"figures": CHECKS[name](scale)}
        failed |= line["ok"] is False
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
