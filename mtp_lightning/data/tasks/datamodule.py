"""The data module of synthetic tasks: fresh examples in windows for training, fixed test sets for validation."""

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from typing_extensions import override

from mtp_lightning.data.datamodule import MTPDataModule
from mtp_lightning.data.loader import Batch, BatchLoader, ResumableLoader
from mtp_lightning.data.tasks.task import Examples, Task, joined
from mtp_lightning.data.tokens.windows import HORIZON_RESERVE
from mtp_lightning.errors import InputError
from mtp_lightning.ranges import Count, Kept, Seed, Workers, check_ranges


def one_a_row(examples: Examples, length: int, answers_only: bool) -> Batch:
    """Each example at the start of a window of `length` tokens; what comes after it is masked."""
    counts = examples.is_answer if answers_only else examples.is_real
    missing = max(0, length - examples.tokens.shape[1])
    tokens, counts = (np.pad(x[:, :length], ((0, 0), (0, missing))) for x in (examples.tokens, counts))
    return {"tokens": torch.from_numpy(tokens.astype(np.int64)), "loss_mask": torch.from_numpy(counts)}


def packed(examples: Examples, length: int, room: int, n_rows: int, answers_only: bool) -> Batch | None:
    """Windows that begin with a whole example and go on with further ones, each a document, to where the last one is
    cut; None where the examples do not fill them.

    Args:
        room: tokens after which the next window may begin, at least `length`: where it is the same, so are the inputs,
            however far the heads look.
    """
    ends = np.cumsum(examples.lengths)
    starts, start = [], 0
    for _ in range(n_rows):
        if start + room > ends[-1]:
            return None
        starts.append(start)
        start = int(ends[np.searchsorted(ends, start + room)])
    places = np.array(starts)[:, None] + np.arange(length)
    counts = examples.is_answer if answers_only else examples.is_real
    return {
        "tokens": torch.from_numpy(examples.tokens[examples.is_real][places].astype(np.int64)),
        "documents": torch.from_numpy(np.searchsorted(ends, places, side="right").astype(np.int32)),
        "loss_mask": torch.from_numpy(counts[examples.is_real][places]),
    }


class TaskWindows(Dataset[Batch]):
    """Global batch b of fresh examples, a pure function of (seed, b); rank r of w has every w-th row, from row r on."""

    def __init__(self, module: "TaskDataModule") -> None:
        self.module = module
        self.rank, self.world_size = module.rank_and_world_size

    def __getitem__(self, index: int) -> Batch:
        module = self.module
        task, n_rows, length = module.task, module.batch_size, module.window
        room = module.context + max(module.horizon, HORIZON_RESERVE)
        count = n_rows * (2 + 2 * room // task.longest if module.pack else 1)
        batch = None
        while batch is None:
            examples = task.train(module.seed, index, count)
            if module.pack:
                batch = packed(examples, length, room, n_rows, module.answers_only)
            else:
                batch = one_a_row(examples, length, module.answers_only)
            count *= 2
        return {name: x[self.rank :: self.world_size] for name, x in batch.items()}


class TestWindows(Dataset[Batch]):
    """Test examples, one a row, in turn from every set. All ranks have equally many rows: where the last batch does not
    divide, some get a row that the loss mask takes out again."""

    def __init__(self, module: "TaskDataModule", examples: Examples) -> None:
        self.module, self.examples = module, examples
        self.rank, self.world_size = module.rank_and_world_size

    def __len__(self) -> int:
        return -(-len(self.examples.lengths) // self.module.batch_size)

    def __getitem__(self, index: int) -> Batch:
        n, size = len(self.examples.lengths), self.module.batch_size
        n_rows = min(size, n - index * size)
        rows = index * size + np.arange(self.rank, -(-n_rows // self.world_size) * self.world_size, self.world_size)
        batch = one_a_row(self.examples.take(np.minimum(rows, n - 1)), self.module.window, self.module.answers_only)
        batch["loss_mask"] &= torch.from_numpy(rows < n)[:, None]
        return batch


class TaskDataModule(MTPDataModule):
    """Examples of a synthetic task, made while training.

    Args:
        task: the task; `mtp_lightning.data.StarGraph`, `Polynomial` or `Execution` of the same module.
        context: T, the input tokens of a window; by default the longest training example without its last token.
        pack: one example after the other until a window is full; otherwise one a window. What a window's end cuts is
            lost, so long examples are whole a little less often than they are drawn.
        answers_only: train on the answers' tokens alone, not on the questions', which are random.
        batch_size: windows of a batch, over all processes together.
        test_size: examples of each test set.
        val_examples: test examples for `val/...`, from all sets whose examples fit the context.
        horizon: how many tokens ahead the model looks at most.
        vocab_size: vocabulary of the model; has to be the task's.
        seed: of the training examples; the test sets are the same for every seed.
        num_workers: processes that make examples ahead.

    Raises:
        InputError: bad input; the message names the configuration key.
    """

    batch_size: int
    context: int

    def __init__(
        self,
        task: Task,
        context: Count | None = None,
        pack: bool = False,
        answers_only: bool = False,
        batch_size: Count = 64,
        test_size: Kept = 2000,
        val_examples: Kept = 512,
        horizon: Count = 1,
        vocab_size: Count = 256,
        seed: Seed = 0,
        num_workers: Workers = 0,
    ) -> None:
        super().__init__(horizon=horizon, vocab_size=vocab_size)
        self.context = task.longest - 1 if context is None else context
        check_ranges("data", TaskDataModule, locals())
        if self.context < task.longest - 1:
            raise InputError(
                f"data.context is {self.context}: the longest {task.name} example has {task.longest} tokens, so it has "
                f"to be at least {task.longest - 1}"
            )
        if task.vocab_size != vocab_size:
            raise InputError(
                f"model.backbone.vocab_size is {vocab_size}, and the task data.task '{task.name}' has "
                f"{task.vocab_size} symbols: set model.backbone.vocab_size: {task.vocab_size}"
            )
        self.task, self.pack, self.answers_only, self.batch_size = task, pack, answers_only, batch_size
        self.test_size, self.val_examples, self.seed, self.num_workers = test_size, val_examples, seed, num_workers
        self.test_sets: dict[str, Examples] = {}

    @property
    def window(self) -> int:
        """L, the tokens of a window."""
        return self.context + self.horizon

    @override
    def setup(self, stage: str) -> None:
        self.check_divides_over_ranks(self.batch_size)
        if stage == "fit" and self.trainer is not None:
            _ = self.n_train_batches  # refuse before anything is trained or logged
        if not self.test_sets:
            self.test_sets = self.task.test_sets(self.test_size)

    @override
    def train_dataloader(self) -> ResumableLoader:
        return self.training_loader(TaskWindows(self), self.num_workers)

    @override
    def val_dataloader(self) -> BatchLoader:
        fitting = [test for test in self.test_sets.values() if test.lengths.max() <= self.context + 1]
        each = -(-self.val_examples // len(fitting))
        examples = joined([test.take(np.arange(min(each, len(test.lengths)))) for test in fitting])
        windows = TestWindows(self, examples)
        return BatchLoader(windows, len(windows), self.num_workers)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "task": self.task.state(),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "context": self.context,
            "pack": self.pack,
            "answers_only": self.answers_only,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuses a checkpoint whose training would go on with other data.

        Raises:
            InputError: names the key that differs.
        """
        self.check_continues(state_dict, self.state_dict())
