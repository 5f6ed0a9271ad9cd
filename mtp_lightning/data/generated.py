"""Data that a function makes, window by window: the shortest way to train on something of one's own."""

from functools import partial
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from mtp_lightning.data.datamodule import MTPDataModule
from mtp_lightning.data.loader import Batch, BatchLoader, ResumableLoader, TrainingWindows, ValidationWindows
from mtp_lightning.errors import InputError
from mtp_lightning.ranges import Count, Seed, Workers, check_ranges
from mtp_lightning.shapes import Int


class GeneratedDataModule(MTPDataModule):
    """Windows made while training; a subclass has to say only what a window is.

    Args:
        context: T, the input tokens of a window.
        batch_size: windows of a batch, over all processes together.
        val_windows: validation windows, 0 .. val_windows - 1.
        horizon: how many tokens ahead the model looks at most; a window has so many tokens more than T.
        vocab_size: vocabulary of the model.
        seed: of the training windows.
        num_workers: processes that make windows ahead.

    Raises:
        InputError: a number that cannot be, or a window that is none.
    """

    batch_size: int
    context: int

    def __init__(
        self,
        context: Count = 64,
        batch_size: Count = 32,
        val_windows: Count = 256,
        horizon: Count = 1,
        vocab_size: Count = 256,
        seed: Seed = 0,
        num_workers: Workers = 0,
    ) -> None:
        super().__init__(horizon=horizon, vocab_size=vocab_size)
        check_ranges("data", GeneratedDataModule, locals())
        self.context, self.batch_size, self.val_windows = context, batch_size, val_windows
        self.seed, self.num_workers = seed, num_workers

    def window(self, rng: np.random.Generator) -> Int[np.ndarray, "L"]:
        """One window: `self.context + self.horizon` token ids, a pure function of `rng`.

        Its first T + 1 tokens should not depend on the horizon, so that runs with other n see the same inputs. A window
        is one document.
        """
        raise NotImplementedError

    @property
    def length(self) -> int:
        """L, the tokens of a window."""
        return self.context + self.horizon

    def windows(self, split: tuple[int, ...], samples: Int[np.ndarray, "B"]) -> Batch:
        """The windows with these numbers; each has a generator of its own, seeded by `split` and its number."""
        rows = [np.asarray(self.window(np.random.default_rng([*split, int(i)]))) for i in samples]
        for row in rows:
            are_ids = row.dtype.kind in "iu" and row.shape == (self.length,)
            if not are_ids or row.min() < 0 or row.max() >= self.vocab_size:
                span = f" from {row.min()} to {row.max()}" if row.size and row.dtype.kind in "iuf" else ""
                raise InputError(
                    f"{type(self).__name__}.window gave {row.shape[0] if row.ndim == 1 else row.shape} tokens of "
                    f"{row.dtype}{span}: it has to give data.context + horizon = {self.length} whole numbers, below "
                    f"model.backbone.vocab_size = {self.vocab_size}"
                )
        return {"tokens": torch.from_numpy(np.stack(rows).astype(np.int64))}

    @override
    def setup(self, stage: str) -> None:
        self.check_divides_over_ranks(self.batch_size)
        if stage == "fit" and self.trainer is not None:
            _ = self.n_train_batches  # refuse before anything is trained or logged
        self.windows(_VALIDATION, np.arange(1))

    @override
    def train_dataloader(self) -> ResumableLoader:
        read = partial(self.windows, (*_TRAINING, self.seed))
        batches = TrainingWindows(read, self.batch_size, *self.rank_and_world_size)
        return self.training_loader(batches, self.num_workers)

    @override
    def val_dataloader(self) -> BatchLoader:
        read = partial(self.windows, _VALIDATION)
        batches = ValidationWindows(read, self.val_windows, self.batch_size, *self.rank_and_world_size)
        return BatchLoader(batches, len(batches), self.num_workers)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size, "seed": self.seed, "context": self.context}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuses a checkpoint whose training would go on with other data.

        Raises:
            InputError: names the key that differs.
        """
        self.check_continues(state_dict, self.state_dict())


_TRAINING, _VALIDATION = (1,), (2,)
"""First words of the seeds: the two splits never share a stream of random numbers."""
