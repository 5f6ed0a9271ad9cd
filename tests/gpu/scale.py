"""How large the checks for a GPU are, and how they take times: what `checks.py` is written with."""

import gc
import json
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from mtp_lightning.bench.harness import synchronize
from mtp_lightning.bench.train_contenders import Workload
from mtp_lightning.config.config_files import find_config
from mtp_lightning.model.config import BackboneConfig
from mtp_lightning.yaml_lines import read_yaml

Figures = dict[str, Any]
ROUNDS = 5


class SkippedError(Exception):
    """Why a check cannot run here."""


@dataclass(frozen=True)
class Scale:
    """How large the checks are."""

    device: str
    sizes: tuple[str, ...]
    """Files of conf/model."""
    context: int
    batch: int
    batches: tuple[int, ...]
    """Of decoding."""
    new_tokens: int
    rows: int
    """Positions of a loss."""
    vocab_size: int
    steps: int
    """Of the runs under a strategy."""
    window: int
    """Positions of a window of many documents."""

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def backbone(self, size: str) -> BackboneConfig:
        values = read_yaml(find_config(f"conf/model/{size}.yaml"))[0]["model"]["backbone"]
        small = {} if self.on_gpu else {"vocab_size": 256, "dim": 64, "n_layers": 6, "n_heads": 4}
        return BackboneConfig(**values | small)

    def workload(self, size: str) -> Workload:
        batch = self.batch if size == self.sizes[0] else max(1, self.batch // 2)
        return Workload(self.backbone(size), self.context, batch, True, self.device)

    def timed(self, run: Callable[[], object]) -> tuple[float, float]:
        """(median seconds, bytes at the peak; 0 on a CPU), after two uncounted runs."""
        for _ in range(2):
            run()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(ROUNDS):
            synchronize(self.torch_device)
            started = time.perf_counter()
            run()
            synchronize(self.torch_device)
            seconds.append(time.perf_counter() - started)
        return sorted(seconds)[ROUNDS // 2], float(torch.cuda.max_memory_allocated()) if self.on_gpu else 0.0

    def matrix_peak(self) -> float:
        """FLOPs a second of a large product in bfloat16."""
        side = 8192 if self.on_gpu else 128
        a = torch.randn(side, side, device=self.device, dtype=torch.bfloat16)
        return 2 * side**3 / self.timed(lambda: a @ a)[0]

    def free(self) -> None:
        torch.compiler.reset()
        gc.collect()  # what was compiled refers to itself, and its memory would be the next one's peak
        if self.on_gpu:
            torch.cuda.empty_cache()


FULL = Scale("cuda", ("0.3B", "1.3B"), 2048, 4, (1, 8, 64), 256, 16384, 32000, 20, 8192)
TINY = Scale("cpu", ("0.3B",), 16, 2, (1, 2), 8, 64, 128, 4, 256)


@contextmanager
def said(line: dict[str, Any]) -> Iterator[None]:
    """Fill in how a check ended, and print it."""
    started = time.perf_counter()
    try:
        yield
        line["ok"] = True
    except SkippedError as reason:
        line |= {"ok": None, "skipped": str(reason)}
    except Exception as error:  # it is the result: printed, and the exit status
        line |= {
            "ok": False,
            "error": f"{type(error).__name__}: {error}"[:2000],
            "where": traceback.format_exc(limit=-1),
        }
    print(json.dumps(line | {"seconds": round(time.perf_counter() - started, 1)}), flush=True)
