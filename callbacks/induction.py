"""Whether and when a model learns to copy: names in stories, repeated tokens, and the attention heads that do it."""

from typing import Annotated, Any

import lightning.pytorch as pl
import numpy as np
from typing_extensions import override

from callbacks.base import ProbeCallback, When
from mtp_lightning.checkpoints.description import begin_ids
from mtp_lightning.data.stories.names import NamedStories
from mtp_lightning.data.tokens.datamodule import TokenDataModule
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.probes.attention import AttentionScores
from mtp_lightning.probes.pictures import film_strip, heat_map
from mtp_lightning.probes.suite import (
    TEXTS_A_STORY,
    CopyLength,
    InductionSuite,
    measure_induction,
    measure_without,
    prepare_names,
    prepare_repeated,
)
from mtp_lightning.ranges import Kept, Range, check_ranges


class InductionProbe(ProbeCallback):
    """Logs, as `probe/induction/...` (README lists all of them),

    - `names_seen/accuracy`, `names_any/accuracy`: on the second token of random two-token names, from their second
      mention on (paper, section 4.1), of tokens that training data have, or of any;
    - `repeated/loss/head_i`, `repeated/accuracy/head_i`: on the second copy of random tokens;
    - `prefix_matching/max`, `previous_token/max`, ...: the attention heads' scores; as heat maps among the run's
      artifacts, and as a film strip at the end;
    - at the end `without_top_3/.../drop`: what the three best attention heads are worth, and the three worst.

    Args:
        when: every so many steps, "log" (spaced) or at every "validation".
        stories: validation documents with names, at the end.
        quick_stories: those measured before that, the first ones; they are most of a measurement's cost.
        names: whether to measure names; for text without any, turn it off. Data that are not text never have them.
        rows: sequences of repeated tokens.
        length: tokens of a copy.
        pictures: whether to draw heat maps.

    Raises:
        InputError: a number below 1; or, when training begins, data without names.
    """

    name = "induction"

    def __init__(
        self,
        when: When = "log",
        stories: Kept = 100,
        quick_stories: Kept = 32,
        names: bool = True,
        rows: Annotated[int, Range(least=1, most=10**4)] = 32,
        length: CopyLength = 32,
        pictures: bool = True,
    ) -> None:
        super().__init__(when)
        check_ranges("InductionProbe", InductionProbe, locals())
        self.stories, self.quick_stories, self.names = stories, quick_stories, names
        self.rows, self.length, self.pictures = rows, length, pictures
        self._suite: InductionSuite | None = None
        self._quick_suite: InductionSuite | None = None
        self._history: list[tuple[int, AttentionScores]] = []

    @property
    @override
    def lead_metrics(self) -> dict[str, float]:
        names = [f"names_{variant}" for variant in (self._suite.stories if self._suite else ())]
        what = [*(f"{name}/accuracy" for name in names), "repeated/accuracy/head_1"]
        return {f"probe/induction/{metric}": 0.5 for metric in what}

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prepared before training: text without names is refused here, not hours later."""
        model, data = pl_module.model, trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(model, MTPModel)
        is_text = isinstance(data, TokenDataModule)
        tokens = np.arange(model.config.vocab_size)
        begin = begin_ids(data, getattr(pl_module, "parent", None))
        stories: dict[str, NamedStories] = {}
        quick: dict[str, NamedStories] = {}
        with self.named():
            if is_text:
                counts = data.token_counts()
                tokens = np.flatnonzero(counts)
                if self.names:
                    texts = data.heldout_texts(TEXTS_A_STORY * self.stories)
                    stories, quick = (
                        prepare_names(texts, data.text_tokenizer, counts, count, data.context, begin)
                        for count in (self.stories, min(self.quick_stories, self.stories))
                    )
            repeated = prepare_repeated(model.heads_config, tokens.tolist(), self.rows, self.length, begin)
        self._suite = InductionSuite(stories, repeated, self.length, len(begin))
        self._quick_suite = InductionSuite(quick, repeated, self.length, len(begin))

    @override
    def measure(self, trainer: pl.Trainer, model: MTPModel, at_end: bool) -> dict[str, float]:
        assert self._suite is not None
        assert self._quick_suite is not None
        step = trainer.global_step
        metrics, scores = measure_induction(model, self._suite if at_end else self._quick_suite)
        self._history.append((step, scores))
        if at_end:
            metrics |= measure_without(model, self._suite, scores)
        if self.pictures:
            self.save_picture(trainer, heat_map(scores, f"step {step:,}"), f"induction/step-{step:08d}.png")
            if at_end:
                self.save_picture(trainer, film_strip(self._history, "attention heads"), "induction/film.png")
        return {f"probe/induction/{name}": value for name, value in metrics.items()}

    @override
    def state_dict(self) -> dict[str, Any]:
        history = [(step, s.layers, s.prefix_matching, s.previous_token) for step, s in self._history]
        return super().state_dict() | {"history": history}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        history = state_dict["history"]
        self._history = [(step, AttentionScores(tuple(layers), *scores)) for step, layers, *scores in history]
