"""Heads of a user's own kind: `model.heads.kind: my_heads.Gated`, a subclass of `Heads` made of (backbone, heads).

    class Gated(Heads):
        def __init__(self, backbone, heads):
            super().__init__([Stack(backbone, heads.layers), ...])      # head 1, then whatever the others need
        def further(self, h_BTD, z_BTD, where, e_MBTD):
            return [...]                                                # hidden states of heads 2 .. n

Head 1 is a `Stack` on the trunk's output, as in every other kind, so the next-token model, its decoding and its export
need to know nothing of the rest. What the rest costs is counted on the meta device.

A checkpoint names its kind too, and nothing that comes with a checkpoint is executed. So nothing here imports a module
but `import_kind`, which is called for what stands in the user's own configuration.
"""

import functools
import sys
from typing import Any, NamedTuple

import torch

from mtp_lightning.errors import InputError, did_you_mean
from mtp_lightning.model.attention import Attention
from mtp_lightning.model.config import BackboneConfig, HeadsConfig
from mtp_lightning.model.heads import Heads, NormedHeads, Stack
from mtp_lightning.model.rope import Rotary
from mtp_lightning.own_code import import_own

MADE_OF = "it has to be a subclass of mtp_lightning.model.heads.Heads"


def import_kind(heads: HeadsConfig) -> None:
    """Import the module of an own kind, because the user's own configuration names it.

    Raises:
        InputError: it cannot be imported.
    """
    if heads.is_own:
        import_own(heads.kind.rpartition(".")[0], f"model.heads.kind is '{heads.kind}'")


def find_kind(kind: str) -> type[Heads]:
    """The class, of a module that has been imported already.

    Raises:
        InputError: it has not been, or holds no such class.
    """
    name, _, cls = kind.rpartition(".")
    module = sys.modules.get(name)
    if module is None:
        raise InputError(
            f"the heads of this model are of kind '{kind}', code of somebody's own that is not run unasked: add "
            f"`--import {name}` if you trust the module '{name}' that is found here"
        )
    found = getattr(module, cls, None)
    if not (isinstance(found, type) and issubclass(found, Heads)):
        own = [name for name, value in vars(module).items() if isinstance(value, type) and issubclass(value, Heads)]
        what = "there is no such class" if found is None else MADE_OF
        raise InputError(f"model.heads.kind is '{kind}': {what}{did_you_mean(cls, own)}")
    kept = found.forward in (Heads.forward, NormedHeads.forward)
    if found.states is not Heads.states or found.first is not Heads.first or not kept:
        raise InputError(
            f"model.heads.kind is '{kind}': it may not override `states`, `first` or `forward`, since head 1 is the "
            "ordinary next-token model; say in `further` what the others are"
        )
    return found


def make_own(backbone: BackboneConfig, heads: HeadsConfig) -> Heads:
    """
    Raises:
        InputError: what it makes are no heads.
    """
    own: Any = find_kind(heads.kind)
    made = own(backbone, heads)
    if len(made) < 1 or not isinstance(made[0], Stack) or len(made[0]) != heads.layers:
        raise InputError(
            f"model.heads.kind is '{heads.kind}': its first module has to be head 1, Stack(backbone, heads.layers)"
        )
    assert isinstance(made, Heads)
    return made


class OwnCounts(NamedTuple):
    """What the heads of an own kind cost, without unembeddings."""

    parameters: int
    """Weights, shared ones once."""
    forward_flops: int
    """Of a forward, per position."""
    layers_run: int
    """Transformer layers run per position."""


def count_own(backbone: BackboneConfig, heads: HeadsConfig, context: int) -> OwnCounts:
    """Made and run on the meta device, without weights.

    Raises:
        InputError: `further` does not give the hidden states of the other heads.
    """
    return _count(find_kind(heads.kind), backbone, heads, context)  # type: ignore[arg-type]  # mypy: not hashable


@functools.lru_cache(maxsize=256)
def _count(own: type[Heads], backbone: BackboneConfig, heads: HeadsConfig, context: int) -> OwnCounts:
    """FLOPs as torch counts them; but causal attention, 2 T d_q, costs half of the full attention that it counts."""
    from torch.utils.flop_counter import FlopCounterMode

    attentions = 0

    def note(*_: Any) -> None:
        nonlocal attentions
        attentions += 1

    with torch.device("meta"), torch.no_grad():
        made = make_own(backbone, heads)
        for module in made.modules():
            if isinstance(module, Attention):
                module.register_forward_hook(note)
        z_BTD = torch.empty(1, context, backbone.dim)
        read = heads.n_future - 1 + made.reads_current
        e_MBTD = torch.empty(read, 1, context, backbone.dim) if made.teacher_forced else None
        where = Rotary(backbone)(torch.arange(context)), None
        with FlopCounterMode(display=False) as counter:
            states = made.states(z_BTD, where, e_MBTD, False)
    wrong = [tuple(h_BTD.shape) for h_BTD in states if h_BTD.shape != z_BTD.shape]
    if len(states) != heads.n_future or wrong:
        found = f"a state of the shape {wrong[0]}" if wrong else f"{len(states) - 1} states"
        raise InputError(
            f"model.heads.kind is '{heads.kind}': `further` gave {found}: it has to give the hidden states of heads "
            f"2 .. n_future = {heads.n_future}, {heads.n_future - 1} in all, each (B, T, D) = {tuple(z_BTD.shape)}"
        )
    flops = counter.get_total_flops() // context - attentions * 2 * context * backbone.q_dim
    return OwnCounts(sum(weight.numel() for weight in made.parameters()), flops, attentions)
