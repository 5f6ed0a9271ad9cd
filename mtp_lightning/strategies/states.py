"""The one layout of optimizer states in checkpoints: torch's own, as a single process writes it.

{"state": {i: {"step", "exp_avg", ...}}, "param_groups": [{..., "params": [i, ...]}]}, with i counting the parameters
in the order of the optimizer's groups. Sharding strategies gather to it and scatter from it by parameter name, so that
a checkpoint of any strategy goes on under any other, with any number of processes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

Names = list[list[str]]
"""Of each parameter group, the names of its parameters in order."""


def group_names(module: nn.Module, optimizer: Optimizer) -> Names:
    """Names of the optimizer's parameters, a tied one by its first name."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def by_index(names: Names, state: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """States by name -> the layout above. `groups` are the optimizer's, for their settings."""
    order = [name for group in names for name in group]
    indices = {name: i for i, name in enumerate(order)}
    return {
        "state": {indices[name]: state[name] for name in order if name in state},
        "param_groups": [
            {**{k: v for k, v in group.items() if k != "params"}, "params": [indices[name] for name in members]}
            for group, members in zip(groups, names)
        ],
    }


def by_name(names: Names, saved: Mapping[str, Any]) -> dict[str, Any]:
    """The layout above -> states by name."""
    order = [name for group in names for name in group]
    return {order[i]: state for i, state in saved["state"].items()}


def settings(saved: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The groups' settings (learning rate, decay, ...) of a saved state."""
    return [{k: v for k, v in group.items() if k != "params"} for group in saved["param_groups"]]
