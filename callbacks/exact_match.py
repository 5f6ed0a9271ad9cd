"""How well a model solves the synthetic task it is trained on, while it learns."""

import lightning.pytorch as pl
import numpy as np
from typing_extensions import override

from callbacks.base import ProbeCallback, When
from mtp_lightning.data.tasks.datamodule import TaskDataModule
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.probes.exact_match import exact_match
from mtp_lightning.ranges import Kept, check_ranges


class ExactMatchProbe(ProbeCallback):
    """Exact-match accuracy of greedy decoding on the task's fixed test questions, as `probe/<task>/<test set>` (paper,
    section 4.2): `probe/polynomial/m_1` ..., `probe/star_graph/path`.

    With data that are no synthetic task it measures nothing.

    Args:
        when: every so many steps, "log" (spaced) or at every "validation".
        questions: of each test set, the first ones, before the end of training; all of them at the end.
    """

    name = "exact_match"

    def __init__(self, when: When = "log", questions: Kept = 64) -> None:
        super().__init__(when)
        check_ranges("ExactMatchProbe", ExactMatchProbe, locals())
        self.questions = questions
        self._lead: dict[str, float] = {}

    @override
    def is_ready(self, trainer: pl.Trainer) -> bool:
        return isinstance(_data(trainer), TaskDataModule)

    @property
    @override
    def lead_metrics(self) -> dict[str, float]:
        """Half of the way from chance to all right."""
        return self._lead

    @override
    def measure(self, trainer: pl.Trainer, model: MTPModel, at_end: bool) -> dict[str, float]:
        data = _data(trainer)
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
