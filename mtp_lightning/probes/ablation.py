"""Taking attention heads out, to see what a model does without them: the causal check of an attention score."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mtp_lightning.errors import InputError
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.probes.attention import attention_layers, hooked, in_batches
from mtp_lightning.shapes import Bool, Float, Int

ROWS = 64
"""Windows of a forward."""


@contextmanager
def mean_ablation(model: MTPModel, heads: Sequence[tuple[str, int]], windows_BL: Int[Tensor, "B L"]) -> Iterator[None]:
    """While it lasts, the given attention heads say the same everywhere: their mean output over all positions of the
    windows, taken from the whole model before anything is replaced.

    An attention head's output is its slice of what `wo` reads. A module that runs several times in a forward has one
    mean over all its runs, and is replaced in each. Only forwards of the model itself see it, not decoding's engine.

    Args:
        heads: (layer, index from 0), named as in `attention_layers` and as `AttentionScores.top` gives them.
        windows_BL: L = T + horizon.

    Raises:
        InputError: an attention head that the model lacks.
    """
    layers = attention_layers(model)
    cut: dict[nn.Module, Bool[Tensor, "D"]] = {}
    for layer, head in heads:
        if layer not in layers or not 0 <= head < model.config.n_heads:
            raise InputError(
                f"there is no attention head {head} in layer '{layer}': the layers are {', '.join(layers)}, and the "
                f"attention heads of each 0 to {model.config.n_heads - 1}"
            )
        wo, width = layers[layer].wo, layers[layer].head_dim
        mask_D = cut.setdefault(wo, torch.zeros(wo.in_features, dtype=torch.bool, device=wo.weight.device))
        mask_D[head * width : (head + 1) * width] = True
    means = _means(model, list(cut), windows_BL)
    with hooked([(wo, _replacement(mask_D, means[wo])) for wo, mask_D in cut.items()]):
        yield


@torch.no_grad()
def _means(
    model: MTPModel, modules: Sequence[nn.Module], windows_BL: Int[Tensor, "B L"]
) -> dict[nn.Module, Float[Tensor, "D"]]:
    """What each module reads, averaged over rows, positions and its runs."""
    sums: dict[nn.Module, Tensor] = {}
    counts = dict.fromkeys(modules, 0)

    def add(module: nn.Module, args: tuple[Tensor]) -> None:
        y_RD = args[0].float().flatten(0, -2)
        sums[module] = sums.get(module, 0.0) + y_RD.sum(0)
        counts[module] += len(y_RD)

    with hooked((module, add) for module in modules):
        for targets in in_batches(model, windows_BL, ROWS):
            model(targets.inputs, None, targets.targets)
    return {module: total_D / counts[module] for module, total_D in sums.items()}


def _replacement(cut_D: Bool[Tensor, "D"], mean_D: Float[Tensor, "D"]) -> Callable[[nn.Module, Any], Tensor]:
    def replace(module: nn.Module, args: tuple[Tensor]) -> Tensor:
        return torch.where(cut_D, mean_D.to(args[0].dtype), args[0])

    return replace
