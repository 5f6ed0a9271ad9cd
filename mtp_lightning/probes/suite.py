"""All measurements of induction, on data prepared once and the same at every step: names, repetition, attention."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mtp_lightning.data.stories.names import NamedStories, named_stories
from mtp_lightning.data.tokens.tokenizer import Tokenizer
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.probes.ablation import mean_ablation
from mtp_lightning.probes.attention import AttentionScores, attention_scores
from mtp_lightning.probes.induction import name_accuracy
from mtp_lightning.probes.repeated import repeated_windows, repetition
from mtp_lightning.ranges import Range
from mtp_lightning.shapes import Int

SEED = 0
"""Of new names and random tokens: they are the same for every run."""
TEXTS_A_STORY = 20
"""Documents to look through for one story with a name."""
CopyLength = Annotated[int, Range(least=2, most=1024)]
"""Tokens of a copy: an attention head's pattern has (2 length)^2 numbers, which are in memory at once."""
ABLATED = 3
"""Attention heads taken out at a time."""


class InductionSuite(NamedTuple):
    """What a model is measured on."""

    stories: Mapping[str, NamedStories]
    """`seen`: names of tokens that occur in the training data; `any`: of any tokens."""
    repeated: Int[Tensor, "B L"]
    length: int
    """Tokens of a copy in `repeated`."""
    begin: int = 0
    """Tokens before the copies: those that all texts of the model begin with."""


def prepare_names(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    counts: Int[np.ndarray, "V"],
    count: int,
    max_tokens: int,
    begin: Sequence[int] = (),
) -> dict[str, NamedStories]:
    """The first `count` texts with names, which are replaced by random ones of two tokens.

    Args:
        counts: how often each token occurs in the training data.
        max_tokens: of a story, with `begin`.
        begin: tokens that go before every story, as before all texts of the model.

    Raises:
        InputError: no such texts, or no such names.
    """
    allowed = {"seen": counts > 0, "any": None}
    room = max_tokens - len(begin)
    found = {variant: named_stories(texts, tokenizer, count, room, SEED, kept) for variant, kept in allowed.items()}
    return {variant: _begun(stories, begin) for variant, stories in found.items()}


def _begun(stories: NamedStories, begin: Sequence[int]) -> NamedStories:
    front = np.tile(np.array(begin, dtype=stories.tokens.dtype), (len(stories.tokens), 1))
    return stories._replace(
        tokens=np.concatenate((front, stories.tokens), axis=1),
        lengths=stories.lengths + len(begin),
        positions=stories.positions + len(begin),
    )


def prepare_repeated(
    heads: HeadsConfig, tokens: Sequence[int], rows: int, length: int, begin: Sequence[int] = ()
) -> Int[Tensor, "B L"]:
    """Random tokens out of these, repeated, after `begin`, for a model with these heads."""
    windows_BL = repeated_windows(max(tokens) + 1, rows, length, heads.horizon, SEED, tokens)
    return torch.cat((torch.tensor([[*begin]] * rows, dtype=torch.long), windows_BL), dim=1)


def measure_induction(model: MTPModel, suite: InductionSuite) -> tuple[dict[str, float], AttentionScores]:
    """Metrics `names_seen/accuracy`, `repeated/loss/head_1`, `prefix_matching/max`, ..., and every attention head's
    scores. The model is used as it is: in the mode it is in."""
    metrics: dict[str, float] = {}
    for variant, stories in suite.stories.items():
        found = name_accuracy(model, stories).metrics()
        metrics |= {f"names_{variant}/{name}": value for name, value in found.items()}
    repeated = repetition(model, suite.repeated, suite.length, suite.begin).summary()
    metrics |= {f"repeated/{name}": value for name, value in repeated.items()}
    scores = attention_scores(model, suite.repeated)
    return metrics | scores.summary(), scores


def measure_without(model: MTPModel, suite: InductionSuite, scores: AttentionScores) -> dict[str, float]:
    """What head 1 loses by the mean ablation of the three attention heads with the highest prefix-matching scores, and,
    as a control, of the three others whose two scores together are the lowest (a previous-token head is part of
    induction too): drop of accuracy on the second copy and on the names.

    Only attention heads that head 1 reads are ranked. Means are over the tokens that accuracy is measured on.
    """
    both = scores._replace(prefix_matching=scores.prefix_matching + scores.previous_token)
    ranked, ranked_by_both = (
        [(layer, head) for layer, head in s.top(s.prefix_matching.numel()) if _is_read(model, layer)]
        for s in (scores, both)
    )
    top = ranked[:ABLATED]
    lowest = [head for head in ranked_by_both if head not in top][-ABLATED:]
    chosen = {f"top_{ABLATED}": top, f"lowest_{ABLATED}": lowest}
    accuracies: dict[str, tuple[Tensor, Callable[[], float]]] = {
        "repeated": (
            suite.repeated,
            lambda: repetition(model, suite.repeated, suite.length, suite.begin).summary()["accuracy/head_1"],
        )
    }
    for variant, stories in suite.stories.items():
        accuracies[f"names_{variant}"] = _without_padding(stories), lambda s=stories: name_accuracy(model, s).accuracy  # type: ignore[misc]
    drops: dict[str, float] = {}
    for name, (windows, accuracy) in accuracies.items():
        before = accuracy()
        for which, heads in chosen.items():
            with mean_ablation(model, heads, windows):
                drops[f"without_{which}/{name}/drop"] = before - accuracy()
    return drops


def _is_read(model: MTPModel, layer: str) -> bool:
    """Whether head 1 depends on a layer."""
    return layer.startswith(("trunk_", "head_1_")) or layer == "head_1" or model.heads_config.kind == "anticausal"


def _without_padding(stories: NamedStories) -> Int[Tensor, "B L"]:
    """The longer half of the stories, cut to the length that all of them have."""
    length = int(np.median(stories.lengths))
    return torch.from_numpy(stories.tokens[stories.lengths >= length, :length])
