"""Weights of one model as the start of another (`model.init`): which weight comes from where, and why not.

The next token's path is what it follows from: embedding, trunk, head 1, final norm, unembedding. Its transformer layers
are taken in their order, whatever is trunk there and head here, so that head 1 is the source's, bit for bit, before the
first step. `Plan` says it of every weight of the new model; what is not on the path follows from `heads`.
"""

from collections.abc import Mapping
from dataclasses import asdict
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from mtp_lightning.errors import InputError
from mtp_lightning.model.config import BackboneConfig, HeadsConfig
from mtp_lightning.model.counts import trunk_widths
from mtp_lightning.model.initial import InitConfig
from mtp_lightning.model.mtp import MTPModel


class Source(NamedTuple):
    """The model that weights come from."""

    name: str
    """For messages: its file."""
    backbone: BackboneConfig
    heads: HeadsConfig
    weights: Mapping[str, Tensor]
    """By the model's own names, a tied one under both; tensors of the meta device do for a plan."""


class Fill(Enum):
    """A weight that the source does not have."""

    DRAWN = "drawn"
    ZEROS = "zeros"
    ONES = "ones"
    EYE = "identity"
    """Of a D x 2D matrix, [I | 0]."""


BIGRAM = ("unembedding.bigram", "before.weight")
"""B and A of kind `markov`, whose rows are tokens."""
REGISTER = "register.weight"
"""Of kind `registers`."""
Plan = dict[str, str | Fill]
"""Weight of the new model -> the source's, or what it is filled with."""


def described(name: str, backbone: BackboneConfig, heads: HeadsConfig) -> Source:
    """A source that does not exist yet."""
    with torch.device("meta"):
        return Source(name, backbone, heads, MTPModel(backbone, heads).state_dict())


def make_plan(source: Source, model: MTPModel, init: InitConfig, same_tokens: bool = True) -> Plan:
    """
    Args:
        same_tokens: whether a token's number means the same to both.

    Raises:
        InputError: the model cannot hold the source's path to the next token, or not its heads; says what to set.
    """
    backbone, heads = model.config, model.heads_config
    _check_heads(source, heads, init)
    plan: Plan = {"norm.weight": "norm.weight"}
    plan |= _vocabulary(source, backbone, init, same_tokens)
    plan |= _path(source, model)
    own = dict(model.named_parameters())
    for name in own:
        if name not in plan:
            plan[name] = _further(name, source, plan, init)
    plan = {name: plan[name] for name in own}
    _check_shapes(source, own, plan, backbone)
    _check_function(source, backbone)
    return plan


@torch.no_grad()
def fill(model: MTPModel, source: Source, plan: Plan) -> None:
    """Carry out `plan`; drawn weights stay what they are.

    Raises:
        InputError: a weight of the source holds NaN or infinity.
    """
    from mtp_lightning.model.training.sharding import put  # and much of torch.distributed, which a plan does without

    for taken in plan.values():
        if isinstance(taken, str) and not source.weights[taken].isfinite().all():
            raise InputError(f"model.init.path: '{source.name}': its weight '{taken}' holds NaN or infinity")
    for name, weight in model.named_parameters():
        taken = plan[name]
        if isinstance(taken, str):
            put(weight, source.weights[taken])
        elif taken is Fill.EYE:
            put(weight, torch.eye(*weight.shape))
        elif taken is not Fill.DRAWN:
            weight.fill_(float(taken is Fill.ONES))


def summary(source: Source, plan: Plan) -> str:
    """One line: how many weights were taken, what was made anew and what was left."""
    taken = {weight for weight in plan.values() if isinstance(weight, str)}
    copies = [name for name, weight in plan.items() if isinstance(weight, str) and weight != name]
    drawn = [name for name, weight in plan.items() if weight is Fill.DRAWN]
    filled = [name for name, weight in plan.items() if isinstance(weight, Fill) and weight is not Fill.DRAWN]
    left = [name for name in source.weights if name not in taken]
    if source.backbone.tie_embeddings:
        left = [name for name in left if name != "unembedding.weight"]
    parts = {"copied": copies, "filled": filled, "drawn": drawn, "not taken": left}
    said = [f"{what}: {', '.join(_grouped(names))}" for what, names in parts.items() if names]
    return "; ".join([f"weights of '{source.name}': {len(taken)} taken", *said])


def _grouped(names: list[str]) -> list[str]:
    """`heads.1.*` for all weights of a head or layer."""
    parts = [name.split(".") for name in names]
    return list(dict.fromkeys(".".join(part[:2]) + ".*" if len(part) > 2 and part[1].isdigit() else ".".join(part)
                              for part in parts))  # fmt: skip


def _check_heads(source: Source, heads: HeadsConfig, init: InitConfig) -> None:
    there, what = source.heads, f"model.init.heads is '{init.heads}'"
    alone = there.n_future == heads.n_future == 1 and "linear" not in (there.kind, heads.kind)
    if init.heads == "keep" and not (alone or (there.kind, there.n_future) == (heads.kind, heads.n_future)):
        raise InputError(
            f"{what}, and the model in '{source.name}' has {there.n_future} heads of kind '{there.kind}', this one "
            f"{heads.n_future} of kind '{heads.kind}' (model.heads): give first (n_future 1, of head 1 alone), or "
            "copy, identity or random (further heads made anew)"
        )
    width, kept = source.backbone.dim, init.heads == "keep" and there.kind == heads.kind
    further = (  # of head 1 alone, layers are where the path is cut, and the others nothing
        ("layers", heads.layers, there.layers),
        ("offsets", [*heads.head_offsets], [*there.head_offsets]),
        ("norms", heads.norms, there.norms),
    )
    for key, mine, theirs in (
        *(further if heads.n_future > 1 else ()),
        ("markov_rank", heads.bigram_rank, there.bigram_rank),
        ("mixture_rank", heads.components, there.components),
        ("latent_width", heads.network_width(width), there.network_width(width)),
    ):
        if kept and mine != theirs:
            raise InputError(f"{what}, and model.heads.{key} is {mine!r}, in '{source.name}' {theirs!r}: set the same")
    replicates = there.replicate_unembedding, heads.replicate_unembedding
    if init.heads == "keep" and not init.draws_unembedding and heads.n_future > 1 and replicates[0] != replicates[1]:
        raise InputError(
            f"{what}, and model.heads.replicate_unembedding is {replicates[1]}, in '{source.name}' {replicates[0]}: "
            "set the same"
        )
    if init.heads == "first" and heads.n_future > 1:
        raise InputError(
            f"{what}, which leaves head 1 alone, and model.heads.n_future is {heads.n_future}: set it to 1, or give "
            "copy, identity or random, which make further heads"
        )
    if init.heads in ("keep", "first") or heads.n_future == 1:
        return
    if heads.kind == "anticausal":
        raise InputError(f"{what}: head 1 of kind 'anticausal' reads heads 2 .. n, and would be another with new ones")
    if heads.is_own and init.heads != "random":
        raise InputError(f"{what}: of what copies heads of kind '{heads.kind}' would consist is not known; give random")
    if heads.kind in ("next_latent", "fetch") and init.heads == "copy":
        raise InputError(f"{what}: the network of kind '{heads.kind}' is no copy of a head; give identity or random")


def _vocabulary(source: Source, backbone: BackboneConfig, init: InitConfig, same_tokens: bool) -> Plan:
    there, drawn = source.backbone, init.draws_unembedding
    same = same_tokens and there.vocab_size == backbone.vocab_size
    if not same and not drawn:
        sizes = f"{there.vocab_size} tokens there and {backbone.vocab_size} here (model.backbone.vocab_size)"
        what = sizes if there.vocab_size != backbone.vocab_size else f"both of {backbone.vocab_size} tokens"
        raise InputError(
            f"model.init.path: '{source.name}' was trained with another tokenizer than this run's, {what}: give its "
            "own, model.init.vocabulary: transfer, which makes rows for its tokens of the old ones, or "
            "model.init.vocabulary: random, which draws embedding and unembedding; either keeps all else"
        )
    if backbone.tie_embeddings:
        if not (there.tie_embeddings or drawn):
            raise InputError(
                f"model.backbone.tie_embeddings is true, and '{source.name}' has two matrices: untie them, or give "
                "model.init.unembedding: random"
            )
        return {"embedding.weight": Fill.DRAWN if drawn else "embedding.weight"}
    return {
        "embedding.weight": "embedding.weight" if same and init.vocabulary != "random" else Fill.DRAWN,
        "unembedding.weight": Fill.DRAWN if drawn else "unembedding.weight",
    }


def _layers(backbone: BackboneConfig, heads: HeadsConfig) -> list[str]:
    """Transformer layers of the path to the next token, in order, by the beginning of their weights' names."""
    trunk = [f"trunk.{i}." for i in range(len(trunk_widths(backbone, heads)))]
    if heads.kind == "linear":
        return trunk
    on_path = range(heads.n_future - 1, -1, -1) if heads.kind == "anticausal" else [0]
    return trunk + [f"heads.{i}.{j}." for i in on_path for j in range(heads.layers)]


def _path(source: Source, model: MTPModel) -> Plan:
    """The layers, and the matrix of a linear head: of a source that has none, the identity."""
    backbone, heads, there = model.config, model.heads_config, source.heads
    ours, theirs = _layers(backbone, heads), _layers(source.backbone, there)
    plan: Plan = {}
    if heads.kind == "linear":
        plan["heads.0.projection.weight"] = "heads.0.projection.weight" if there.kind == "linear" else Fill.EYE
    elif there.kind == "linear":
        raise InputError(
            f"model.heads.kind is '{heads.kind}', and head 1 of '{source.name}' is a matrix, as only kind 'linear' has"
        )
    if len(ours) != len(theirs):
        extra = heads.layers * (heads.n_future - 1) if heads.kind == "anticausal" else 0
        raise InputError(
            f"model.init.path: the path to the next token has {len(theirs)} layers in '{source.name}' and {len(ours)} "
            f"here (model.backbone.n_layers {backbone.n_layers}, model.heads.match {heads.match}): the trunk has to "
            f"stay whole; set model.backbone.n_layers: {len(theirs) - extra} and model.heads.match: none"
            f"{_differing(source, backbone, '; and ')}"
        )
    for to, out_of in zip(ours, theirs):
        plan |= {name: name.replace(to, out_of, 1) for name, _ in model.named_parameters() if name.startswith(to)}
    return plan


_OF_NETWORKS = ("first", "second", "last", "gain", "slot_norm", "wq", "wk", "wv", "wo", "pair_bias")
"""Weights of the networks of kinds `next_latent` and `fetch`, beside a norm."""


def _further(name: str, source: Source, plan: Plan, init: InitConfig) -> str | Fill:
    """A weight that is not on the path."""
    is_unembedding = name.startswith("further_unembeddings.")
    if name in BIGRAM and init.heads in ("copy", "identity"):  # as if there were none, at first
        return Fill.ZEROS if name == BIGRAM[0] else Fill.DRAWN
    if name == REGISTER and (source.heads.kind != "registers" or init.heads != "keep"):
        return Fill.DRAWN
    if name in BIGRAM and init.draws_unembedding:
        return Fill.DRAWN
    if name.startswith("mixture."):  # as a mixture begins: every component is its head
        return name if init.heads == "keep" else Fill.DRAWN
    if init.heads == "random" or (is_unembedding and init.draws_unembedding):
        return Fill.DRAWN
    if init.heads == "keep":
        return name
    if is_unembedding:
        return plan.get("unembedding.weight", plan["embedding.weight"])
    _, _, rest = name.split(".", 2)
    if rest.split(".")[0] in _OF_NETWORKS:  # which add nothing, at first
        return Fill.ZEROS if rest in ("last.weight", "wo.weight") else Fill.DRAWN
    if rest in ("hidden_norm.weight", "embedding_norm.weight"):
        return Fill.ONES
    if rest == "norm.weight":
        return Fill.ONES if init.heads == "identity" else "norm.weight"
    if rest == "projection.weight":
        linear = plan.get("heads.0.projection.weight", Fill.EYE)
        return linear if init.heads == "copy" else Fill.EYE
    rest = rest.removeprefix("stack.")
    if init.heads == "identity" and rest.endswith(("attention.wo.weight", "ffn.down.weight")):
        return Fill.ZEROS
    return plan[f"heads.0.{rest}"]


def _check_shapes(source: Source, own: Mapping[str, Tensor], plan: Plan, backbone: BackboneConfig) -> None:
    for name, taken in plan.items():
        if not isinstance(taken, str):
            continue
        here = tuple(own[name].shape)
        if taken not in source.weights:
            raise InputError(f"model.init.path: '{source.name}' has no weight '{taken}', which '{name}' would be")
        there = tuple(source.weights[taken].shape)
        if there != here:
            raise InputError(
                f"model.init.path: '{source.name}': its weight '{taken}' is of shape {there}, and this model's "
                f"'{name}' of {here}{_why(source, backbone, taken)}"
            )


def _why(source: Source, backbone: BackboneConfig, taken: str) -> str:
    """What to set, as the end of a message."""
    widths = {*trunk_widths(source.backbone, source.heads)}
    if ".ffn." in taken and widths - {source.backbone.ffn}:
        return (
            f"; model.heads.match 'parameters' gave the source's trunk SwiGLUs of "
            f"{', '.join(map(str, sorted(widths)))} columns, which "
            "only the same heads and n_layers have: train it with model.heads.match: none, or keep them"
        )
    differing = _differing(source, backbone, "; set ")
    return f"{differing}{' and model.heads.match: none' if '.ffn.' in taken else ''}"


def _settings(backbone: BackboneConfig) -> dict[str, object]:
    """What makes the same weights the same function, whether written down or by default. Not what rotates: other
    positions are another model on purpose."""
    said = asdict(backbone) | {"n_kv_heads": backbone.kv_heads, "head_dim": backbone.head_size, "ffn_dim": backbone.ffn}
    return {key: value for key, value in said.items() if not key.startswith("rope_") and key not in MAY_DIFFER}


def _differing(source: Source, backbone: BackboneConfig, begin: str) -> str:
    """All that the backbone has otherwise than the source, so that it is set at once."""
    there, here = _settings(source.backbone), _settings(backbone)
    differing = {key: there[key] for key in there if there[key] != here[key]}
    if backbone.head_dim is None and source.backbone.dim == source.backbone.n_heads * source.backbone.head_size:
        differing.pop("head_dim", None)  # follows from the others
    said = ", ".join(f"model.backbone.{key}: {value}" for key, value in differing.items())
    return begin + said if said else ""


MAY_DIFFER = ("vocab_size", "n_layers", "tie_embeddings", "init_std", "attend_across_documents")
"""Of the backbone. The first three are looked at where they matter."""


def _check_function(source: Source, backbone: BackboneConfig) -> None:
    """What shapes do not show: with other attention heads the same weights are another function."""
    there, here = _settings(source.backbone), _settings(backbone)
    for key, value in here.items():
        if key != "ffn_dim" and there[key] != value:  # of a source without layers of that width it says nothing
            raise InputError(
                f"model.backbone.{key} is {value!r}, and the model in '{source.name}' has {there[key]!r}: with another "
                f"its weights are another function{_differing(source, backbone, '; set ')}"
            )


def other_positions(source: Source, backbone: BackboneConfig) -> str:
    """How rotary positions differ from the source's, as the end of a line."""
    there, here = asdict(source.backbone), asdict(backbone)
    said = [
        f"model.backbone.{key} {here[key]}, there {there[key]}"
        for key in ("rope_theta", "rope_scaling") if there[key] != here[key]
    ]  # fmt: skip
    return f"; positions rotate otherwise: {', '.join(said)}" if said else ""
