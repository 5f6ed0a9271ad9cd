"""The base of all data modules: what every one has to offer."""

from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from mtp_lightning.data.loader import Batches, ResumableLoader
from mtp_lightning.data.tokens.tokenizer import Tokenizer
from mtp_lightning.errors import InputError
from mtp_lightning.ranges import Count, check_ranges
from mtp_lightning.shapes import Int


class MTPDataModule(pl.LightningDataModule):
    """The base of all data modules; `horizon` and `vocab_size` are the model's, linked by the command line.

    Batches are dicts of windows of L = T + horizon tokens: `tokens` (B, L) int64, `documents` (B, L) int32 ids or
    absent, `loss_mask` (B, L) bool or absent. Training's come from `training_loader`.

    Training is one epoch of as many batches as the run has steps: the length of a run is given once, in steps. Passes
    over the data are a matter of the sample order alone. (A run that Lightning resumes in the middle of its epoch is
    right; where it resumes near the end of one of many epochs it can miscount.)

    Args:
        horizon: how many tokens ahead the model looks at most; follows from model.heads.
        vocab_size: vocabulary of the model; follows from model.backbone.vocab_size.

    Raises:
        InputError: a number that cannot be.
    """

    tokenizer: Tokenizer | None = None
    """None for data that is not text."""
    batch_size: int | None = None
    """Windows of a batch, over all processes together."""
    context: int | None = None
    """T, the input tokens of a window. Where it is None, `mtp grid plan` does not know what a run costs."""

    def __init__(self, horizon: Count = 1, vocab_size: Count = 256) -> None:
        super().__init__()
        check_ranges("data", MTPDataModule, {"horizon": horizon})
        check_ranges("model.backbone", MTPDataModule, {"vocab_size": vocab_size})
        self.horizon, self.vocab_size = horizon, vocab_size

    @property
    def token_bytes(self) -> Int[Tensor, "V"] | None:
        """Bytes of text that each token stands for, for bits per byte; None for data that is not text."""
        return None

    @property
    def bytes_per_token(self) -> float | None:
        """Of the training data, so that runs with other tokenizers can be compared after equal text; None for data that
        is not text."""
        return None

    @property
    def fingerprint(self) -> str | None:
        """What the data is, as a hash; None where it does not come from outside."""
        return None

    @property
    def window_room(self) -> int | None:
        """Tokens that windows have room for after their inputs, where it decides which windows there are: runs with
        another room see other ones."""
        return None

    @property
    def n_train_batches(self) -> int:
        """The length of the one epoch of training.

        Raises:
            InputError: the trainer does not say for how many steps it trains.
        """
        assert self.trainer is not None
        if self.trainer.max_steps < 1:
            raise InputError(
                f"trainer.max_steps is {self.trainer.max_steps}: say for how many steps to train, as in "
                "trainer.max_steps: 1000 (the length of a run is counted in steps, not in epochs)"
            )
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    def training_loader(self, batches: Batches, num_workers: int = 0) -> ResumableLoader:
        """What `train_dataloader` returns: as many batches as the run trains on, the first of each optimizer step with
        the others of it, so that their targets can be counted."""
        assert self.trainer is not None
        return ResumableLoader(batches, self.n_train_batches, num_workers, self.trainer.accumulate_grad_batches)

    @property
    def step_windows(self) -> int:
        """Windows of an optimizer step, over all processes; of one batch without a trainer."""
        assert self.batch_size is not None
        return self.batch_size * (1 if self.trainer is None else self.trainer.accumulate_grad_batches)

    def seen(self, steps: int) -> dict[str, float]:
        """What is to be logged of the data that so many optimizer steps have used."""
        return {}

    @property
    def rank_and_world_size(self) -> tuple[int, int]:
        """(0, 1) without a trainer."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def check_divides_over_ranks(self, batch_size: int) -> None:
        """Every rank has the same number of rows.

        Raises:
            InputError: it cannot have.
        """
        world_size = self.rank_and_world_size[1]
        if batch_size % world_size:
            raise InputError(
                f"data.batch_size is {batch_size}, and does not divide over {world_size} processes: it counts the "
                "windows of all of them together"
            )

    def check_continues(self, saved: dict[str, Any], keys: Iterable[str]) -> None:
        """Training goes on with the data it began with: these entries of `state_dict` are those of the checkpoint.

        Raises:
            InputError: names the key that differs.
        """
        if self.trainer is not None and self.trainer.state.fn != "fit":
            return
        mine = self.state_dict()
        for key in keys:
            if saved.get(key) != mine.get(key):
                raise InputError(
                    f"ckpt_path: the checkpoint was trained with data.{key} = {saved.get(key)}, and this "
                    f"configuration says {mine.get(key)}: the run would not go on with the same data; start a new run"
                )
