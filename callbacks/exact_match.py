"""How well a model solves the synthetic task it is trained on, while it learns."""

import lightning.pytorch as pl
import numpy as np
from typing_extensions import override

from callbacks.base import ProbeCallback, When
from mtp_lightning.data.tasks.datamodule import TaskDataModule
from mtp_lightning.data.tokens.datamodule import TokenDataModule
from mtp_lightning.data.tokens.heldout import heldout_pairs
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.probes.exact_match import answer, exact_match
from mtp_lightning.ranges import Kept, check_ranges

MOST_PAIRS = 1000


class ExactMatchProbe(ProbeCallback):
    """Exact-match accuracy of greedy decoding on the task's fixed test questions, as `probe/<task>/<test set>` (paper,
    section 4.2): `probe/polynomial/m_1` ..., `probe/star_graph/path`, `probe/execution/m_1` ...; on validation pairs,
    as `probe/pairs/exact`.

    With other data it measures nothing.

    Args:
        when: every so many steps, "log" (spaced) or at every "validation".
        questions: of each test set, the first ones, before the end of training; all of them at the end (of pairs at
            most 1,000).
    """

    name = "exact_match"

    def __init__(self, when: When = "log", questions: Kept = 64) -> None:
        super().__init__(when)
        check_ranges("ExactMatchProbe", ExactMatchProbe, locals())
        self.questions = questions
        self._lead: dict[str, float] = {}

    @override
    def is_ready(self, trainer: pl.Trainer) -> bool:
        data = _data(trainer)
        has_pairs = isinstance(data, TokenDataModule) and data.validation_pairs is not None
        return has_pairs or isinstance(data, TaskDataModule)

    @property
    @override
    def lead_metrics(self) -> dict[str, float]:
        """Half of the way from chance to all right."""
        return self._lead

    @override
    def measure(self, trainer: pl.Trainer, model: MTPModel, at_end: bool) -> dict[str, float]:
        data = _data(trainer)
        if isinstance(data, TokenDataModule):
            assert data.validation_pairs is not None
            pairs = heldout_pairs(data.validation_pairs, MOST_PAIRS if at_end else self.questions, data.context)
            self._lead = {"probe/pairs/exact": 0.5}
            return {"probe/pairs/exact": answer(model, pairs).accuracy}
        assert isinstance(data, TaskDataModule)
        test_sets = {
            name: test if at_end else test.take(np.arange(min(self.questions, len(test.lengths))))
            for name, test in data.test_sets.items()
        }
        self._lead = {f"probe/{data.task.name}/{name}": (1 + data.task.chance) / 2 for name in test_sets}
        found = exact_match(model, data.task, test_sets)
        return {f"probe/{data.task.name}/{name}": value for name, value in found.items()}


def _data(trainer: pl.Trainer) -> object:
    return trainer.datamodule  # type: ignore[attr-defined]
