"""Batches by number, and the loaders that count them. Shared by every data module.

The loaders are plain iterables around a DataLoader, not subclasses of it. Lightning rebuilds DataLoaders with a
sampler of its own in distributed runs, and DeepSpeed's strategy asks them for a batch sampler; here the order, and
which rank gets which rows, are decided in one place.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mtp_lightning.data.tokens.windows import TrainingOrder, ValidationOrder
from mtp_lightning.objective.targets import STEP_REST
from mtp_lightning.shapes import Int

Batch = dict[str, Any]
"""`tokens` (B, L) int64, `documents` (B, L) int32 ids; `loss_mask` (B, L) bool where not every token counts;
`sentinels` (B, L) bool where no head looks across them."""
Read = Callable[[Int[np.ndarray, "B"]], Batch]
"""The numbers of samples -> their windows."""


@runtime_checkable
class Batches(Protocol):
    """This rank's part of global batch number `index`, for any index >= 0."""

    def __getitem__(self, index: int) -> Batch: ...


class TrainingWindows(Dataset[Batch]):
    """Global batch b is the samples b * batch_size ...; rank r of w has every w-th row of it, from row r on."""

    def __init__(self, read: Read, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        assert batch_size % world_size == 0
        self.read = read
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size

    def __getitem__(self, index: int) -> Batch:
        samples = np.arange(index * self.batch_size + self.rank, (index + 1) * self.batch_size, self.world_size)
        return self.read(samples)


class ValidationWindows(Dataset[Batch]):
    """Like `TrainingWindows`, ending with a smaller batch. All ranks have equally many rows, for sharded models hang
    otherwise: where the last batch does not divide, some get a row that the loss mask takes out again."""

    def __init__(self, read: Read, n_windows: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        assert batch_size % world_size == 0
        self.read, self.n_windows = read, n_windows
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size

    def __len__(self) -> int:
        return -(-self.n_windows // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        n_windows = self.n_windows
        n_rows = min(self.batch_size, n_windows - index * self.batch_size)
        padded = -(-n_rows // self.world_size) * self.world_size
        samples = index * self.batch_size + np.arange(self.rank, padded, self.world_size)
        batch = self.read(np.minimum(samples, n_windows - 1))
        if padded > n_rows:
            real_B = torch.from_numpy(samples < n_windows)
            real_BL = real_B[:, None].expand_as(batch["tokens"])
            batch["loss_mask"] = real_BL & batch.get("loss_mask", real_BL)
        return batch


@runtime_checkable
class Tokens(Protocol):
    """A corpus, read at any position (`TokenStore`)."""

    def read(self, start: int, length: int) -> Int[np.ndarray, "{length}"]: ...

    def document_ids(self, start: int, length: int) -> Int[np.ndarray, "{length}"]: ...


def read_windows(store: Tokens, order: TrainingOrder | ValidationOrder, samples: Int[np.ndarray, "B"]) -> Batch:
    """The windows of a corpus; with the first two arguments bound it is a `Read`."""
    starts, length = order.starts(samples), order.context + order.horizon
    tokens = np.stack([store.read(int(start), length) for start in starts])
    documents = np.stack([store.document_ids(int(start), length) for start in starts])
    return {"tokens": torch.from_numpy(tokens), "documents": torch.from_numpy(documents)}


def whole_steps(batches: Iterable[Batch], step_batches: int) -> Iterator[Batch]:
    """The same batches, where the first of each optimizer step brings the others along, as its `STEP_REST`.

    A loss is a mean over the valid targets of the whole step, and its gradient is formed batch by batch: how many
    targets there are has to be known before the first. Begins with the first batch of a step.
    """
    if step_batches == 1:
        yield from batches
        return
    left = iter(batches)
    while step := list(islice(left, step_batches)):
        first, *rest = step
        yield {**first, STEP_REST: rest}
        yield from rest


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
    with the fit loop. It counts what was handed out, not what workers or `whole_steps` have fetched ahead.

    Args:
        step_batches: batches of an optimizer step (Lightning's `accumulate_grad_batches`).
    """

    def __init__(self, batches: Batches, n_batches: int, num_workers: int = 0, step_batches: int = 1) -> None:
        assert n_batches % step_batches == 0
        super().__init__(batches, n_batches, num_workers)
        self.step_batches = step_batches
        self.n_yielded = 0

    def __iter__(self) -> Iterator[Batch]:
        first = self.n_yielded
        loaded = self._load(range(first, (first // self.n_batches + 1) * self.n_batches))
        for batch in whole_steps(loaded, self.step_batches):
            self.n_yielded += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"n_yielded": self.n_yielded}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.n_yielded = state["n_yielded"]
