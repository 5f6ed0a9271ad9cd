"""Where attention heads look: induction and previous-token scores of every one, from the model's own patterns.

An induction head, at a token that came before, attends to what followed it then: A B ... A -> B (Elhage et al. 2021).
It is built on a head of an earlier layer that attends to the previous token. Scores on a sequence that repeats itself,
with positions 0 .. 5 and attention from position 3:

    A B C A B C     from 3 to 1: prefix matching     from 3 to 2: previous token     from 3 to 0: a duplicate, no score
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mtp_lightning.model.attention import Attention
from mtp_lightning.model.documents import Documents, Mask, WithRegisters, causal_mask
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.objective.targets import Targets, make_targets
from mtp_lightning.shapes import Bool, Float, Int

PATTERN_ELEMENTS = 2**22
"""Attention probabilities alive at once, about: they set how many rows a forward has."""
TOP = 3
"""Attention heads whose mean is a scalar: one strong head is luck or a circuit, three are rarely luck."""

Hook = Callable[..., Any]


class AttentionScores(NamedTuple):
    """Two scores of every attention head, each 0 to 1."""

    layers: tuple[str, ...]
    """Names as in `attention_layers`."""
    prefix_matching: Float[Tensor, "layers H"]
    """NaN where no token of the windows comes again."""
    previous_token: Float[Tensor, "layers H"]

    def top(
        self, k: int, by: Literal["prefix_matching", "previous_token"] = "prefix_matching"
    ) -> list[tuple[str, int]]:
        """(layer, index of the attention head from 0) of the k highest, or of all if there are fewer."""
        scores = self._of(by)
        order = scores.flatten().argsort(descending=True, stable=True)[:k].tolist()
        return [(self.layers[i // scores.shape[1]], i % scores.shape[1]) for i in order]

    def summary(self) -> dict[str, float]:
        """`prefix_matching/max`, the mean of the highest three `prefix_matching/top_3`, and so for the other score."""
        scalars = {}
        for name in ("prefix_matching", "previous_token"):
            scores = self._of(name).flatten()
            scalars[f"{name}/max"] = scores.max().item()
            scalars[f"{name}/top_{TOP}"] = scores.topk(min(TOP, len(scores))).values.mean().item()
        return scalars

    def _of(self, name: str) -> Tensor:
        return self.prefix_matching if name == "prefix_matching" else self.previous_token


def attention_layers(model: MTPModel) -> dict[str, Attention]:
    """Every attention layer by its name: `trunk_1`, `trunk_2`, ..., then the prediction heads' own `head_1`, ..., or
    `head_1_layer_1`, ... where a head has several.

    Linear heads have none. The module that all further heads of kind `recurrent` share stands once, as `head_2`.
    """
    layers = {f"trunk_{i}": block.attention for i, block in enumerate(model.trunk, start=1)}
    for i, head in enumerate(model.heads, start=1):
        own = [part for part in head.modules() if isinstance(part, Attention)]
        names = [f"head_{i}"] if len(own) == 1 else [f"head_{i}_layer_{j}" for j in range(1, len(own) + 1)]
        layers |= zip(names, own)
    return layers  # type: ignore[return-value]


@contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Hook]]) -> Iterator[None]:
    """Forward pre-hooks, while it lasts.

    Compiled layers run as they were written: code compiled before does not look whether there are hooks.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for module, hook in hooks:
            stack.enter_context(module.register_forward_pre_hook(hook))
        yield


def in_batches(model: MTPModel, windows_BL: Int[Tensor, "B L"], rows: int) -> Iterator[Targets]:
    """The windows' inputs and targets, so many rows at a time, on the model's device."""
    for part in torch.split(windows_BL.to(model.embedding.weight.device), rows):
        yield make_targets(model.heads_config, part)


def attention_pattern(
    attention: Attention,
    x_BTD: Float[Tensor, "B T D"],
    rotary: tuple[Float[Tensor, "T F"], Float[Tensor, "T F"]],
    mask: Mask = None,
) -> Float[Tensor, "B H T T"]:
    """Probabilities, in float32, with which `attention(x, rotary, mask)` attends from position t (third) to s (last).

    Queries and keys are as the module has them; products and softmax are in float32 even under autocast.
    """
    q, k = attention.queries_keys(x_BTD, rotary)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    assert not isinstance(mask, WithRegisters), "training alone has registers"
    mask = mask.mask if isinstance(mask, Documents) else mask
    visible = causal_mask(x_BTD.shape[1], x_BTD.shape[1], x_BTD.device) if mask is None else mask
    with torch.autocast(x_BTD.device.type, enabled=False):
        scores_BHTT = q.float() @ k.float().transpose(-1, -2) * attention.head_dim**-0.5
        return torch.softmax(scores_BHTT.masked_fill(~visible, float("-inf")), dim=-1)


@torch.no_grad()
def over_patterns(
    model: MTPModel,
    windows_BL: Int[Tensor, "B L"],
    measure: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, Tensor]:
    """`measure(pattern (B, H, T, T), tokens (B, T))` of every layer: (B, ...), of all rows, by the layer's name.

    A pattern is gone before the next is made. Of a module that runs several times in a forward the first run counts.
    The model is used as it is: in the mode it is in, on the device it is on.

    Args:
        windows_BL: L = T + horizon; kinds of heads that read true tokens find them there.
    """
    layers = attention_layers(model)
    T = windows_BL.shape[1] - model.heads_config.horizon
    rows = max(1, PATTERN_ELEMENTS // (model.config.n_heads * T * T))
    parts = [_measured(model, layers, targets, measure) for targets in in_batches(model, windows_BL, rows)]
    return {name: torch.cat([part[name] for part in parts]) for name in layers}


def _measured(
    model: MTPModel, layers: dict[str, Attention], targets: Targets, measure: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    found: dict[nn.Module, Tensor] = {}

    def look(attention: Attention, args: tuple[Any, ...]) -> None:
        if attention not in found:
            found[attention] = measure(attention_pattern(attention, *args), targets.inputs)

    with hooked((attention, look) for attention in layers.values()):
        model(targets.inputs, None, targets.targets)
    return {name: found[attention] for name, attention in layers.items()}


def followers(tokens_BT: Int[Tensor, "B T"]) -> Bool[Tensor, "B T T"]:
    """True from t to s where s comes right after an earlier occurrence of the token at t; s may be t itself."""
    after_BTT = torch.zeros(*tokens_BT.shape, tokens_BT.shape[1], dtype=torch.bool, device=tokens_BT.device)
    after_BTT[:, :, 1:] = tokens_BT[:, :, None] == tokens_BT[:, None, :-1]
    return after_BTT.tril()


def prefix_matching(pattern_BHTT: Float[Tensor, "B H T T"], tokens_BT: Int[Tensor, "B T"]) -> Float[Tensor, "H"]:
    """Attention to what followed earlier occurrences of the current token, summed over these, and averaged over the
    positions whose token has any (Olsson et al. 2022, "prefix matching score"). NaN if none has."""
    return _matched(pattern_BHTT, tokens_BT).sum(0) / followers(tokens_BT).any(-1).sum()


def previous_token(pattern_BHTT: Float[Tensor, "B H T T"]) -> Float[Tensor, "H"]:
    """Mean attention to the position before, over all positions but the first."""
    return _to_previous(pattern_BHTT).mean(0)


def attention_scores(model: MTPModel, windows_BL: Int[Tensor, "B L"]) -> AttentionScores:
    """Both scores of every attention head of trunk and prediction heads, over all rows; `over_patterns` says how."""

    def measure(pattern_BHTT: Tensor, tokens_BT: Tensor) -> Tensor:
        return torch.stack((_matched(pattern_BHTT, tokens_BT), _to_previous(pattern_BHTT)), dim=-1)

    found = over_patterns(model, windows_BL, measure)
    inputs_BT = make_targets(model.heads_config, windows_BL).inputs
    matched, to_previous = torch.stack(list(found.values())).cpu().unbind(-1)  # (layers, B, H) each
    repeats = followers(inputs_BT).any(-1).sum().cpu()
    return AttentionScores(tuple(found), matched.sum(1) / repeats, to_previous.mean(1))


def _matched(pattern_BHTT: Tensor, tokens_BT: Tensor) -> Float[Tensor, "B H"]:
    return torch.einsum("bhts,bts->bh", pattern_BHTT, followers(tokens_BT).to(pattern_BHTT.dtype))


def _to_previous(pattern_BHTT: Tensor) -> Float[Tensor, "B H"]:
    return pattern_BHTT.diagonal(-1, -2, -1).mean(-1)
