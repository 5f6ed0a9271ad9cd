"""Batches by number, and the loaders that count them. Shared by every data module.

The loaders are plain iterables around a DataLoader, not subclasses of it. Lightning rebuilds DataLoaders with a
sampler of its own in distributed runs, and DeepSpeed's strategy asks them for a batch sampler; here the order, and
which rank gets which rows, are decided in one place.
"""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader

Batch = dict[str, Tensor]
"""`tokens` (B, L) int64, `documents` (B, L) int32 ids; `loss_mask` (B, L) bool where not every token counts."""


@runtime_checkable
class Batches(Protocol):
    """This rank's part of global batch number `index`, for any index >= 0."""

    def __getitem__(self, index: int) -> Batch: ...


class BatchLoader:
    """Batches 0 ... n_batches - 1, every time."""

    def __init__(self, batches: Batches, n_batches: int, num_workers: int = 0) -> None:
        self.batches, self.n_batches, self.num_workers = batches, n_batches, num_workers

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[Batch]:
        yield from self._load(range(self.n_batches))

    def _load(self, numbers: range) -> Iterator[Batch]:
        loader: DataLoader[Batch] = DataLoader(
            self.batches,  # type: ignore[arg-type]
            batch_size=None,
            sampler=numbers,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )
        return iter(loader)


class ResumableLoader(BatchLoader):
    """Counts the batches it hands out, over any number of passes, and goes on where it stopped.

    A pass is n_batches long; after `load_state_dict` the first one is what was left of it. Lightning saves the count
    with the fit loop. It counts what was handed out, not what workers have fetched ahead.
    """

    def __init__(self, batches: Batches, n_batches: int, num_workers: int = 0) -> None:
        super().__init__(batches, n_batches, num_workers)
        self.n_yielded = 0

    def __iter__(self) -> Iterator[Batch]:
        first = self.n_yielded
        for batch in self._load(range(first, (first // self.n_batches + 1) * self.n_batches)):
            self.n_yielded += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"n_yielded": self.n_yielded}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.n_yielded = state["n_yielded"]
