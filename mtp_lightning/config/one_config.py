"""A configuration as `mtp fit` would run it: parsed, checked and measured, and nothing run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from mtp_lightning.checkpoints.initial import check_initial
from mtp_lightning.config.cross_checks import check_trainer
from mtp_lightning.config.keys.key_origins import arguments
from mtp_lightning.config.keys.linked_keys import LINKS
from mtp_lightning.config.keys.parser import input_error_behind
from mtp_lightning.config.lightning_cli import MTPCLI
from mtp_lightning.config.memory import MemorySettings
from mtp_lightning.config.run_size import Size
from mtp_lightning.data.datamodule import MTPDataModule
from mtp_lightning.model.counts import count_parameters, flops_per_token
from mtp_lightning.model.initial import CELL
from mtp_lightning.model.memory import training_memory
from mtp_lightning.module import MTPModule
from mtp_lightning.yaml_lines import read_value


class Parsed(NamedTuple):
    """A configuration that was parsed and not checked."""

    cli: MTPCLI
    plain: dict[str, Any]
    """The same as dicts, lists and scalars."""


def parse_config(configs: Sequence[Path], overrides: Mapping[str, Any], like: Parsed | None = None) -> Parsed:
    """The full configuration, defaults and interpolations included, as `mtp fit` would run it.

    Args:
        like: another, whose parser is taken, as making one takes as long as parsing.

    Raises:
        InputError: an unknown key, a wrong type.
    """
    args = arguments(configs, overrides)
    cli = like.cli.parsed_from(args) if like else MTPCLI(args, parse_only=True, flags="")
    text = cli.parser.dump(cli.config, skip_none=False, skip_validation=True)  # it was just parsed
    return Parsed(cli, read_value(text))


def resolve_config(configs: Sequence[Path], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`parse_config`, checked as a whole."""
    parsed = parse_config(configs, overrides)
    check_config(parsed)
    return parsed.plain


def check_config(parsed: Parsed, changes: Mapping[str, Any] | None = None) -> Size:
    """Make model and data module, without weights and without data, so that their own checks run.

    Args:
        changes: dotted key -> another value than the parsed one.

    Raises:
        InputError: what they refuse.
    """
    cli = parsed.cli
    config = cli.config.clone()
    for key, value in (changes or {}).items():
        config[key] = value
    for sources, target, compute in LINKS if changes else ():
        values = [config[source] for source in sources]
        config[target] = compute(*values) if compute else values[0]
    check_trainer(config)
    config.trainer.logger = False
    try:
        with torch.device("meta"), _Undrawn():
            made = cli.parser.instantiate(config)
    except ValueError as error:
        refused = input_error_behind(error)
        if refused is None:
            raise
        raise refused from error
    init = made.model.init_config
    if init.path is not None and not init.path.startswith(CELL):
        check_initial(init, made.model.model)
    return _size(made.model, made.data, config.trainer)


class _Undrawn(TorchFunctionMode):
    """Leaves out the drawing of weights, which takes most of the time of making a model that has none."""

    @override
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == torch.nn.init.__name__:
            return kwargs["tensor"]
        return args[0] if func in (torch.Tensor.normal_, torch.Tensor.uniform_) else func(*args, **(kwargs or {}))


def _size(module: MTPModule, data: MTPDataModule, trainer: Any) -> Size:
    counts = count_parameters(module.model.config, module.heads_config)
    rows, context = data.batch_size, data.context
    if not context or not rows or trainer.max_steps < 1:
        return Size(counts.total, counts.non_embedding)
    backbone, heads = module.model.config, module.heads_config
    on_gpu = trainer.accelerator in ("gpu", "cuda") or (trainer.accelerator == "auto" and torch.cuda.is_available())

    def memory(on_gpu: bool) -> int:
        settings = MemorySettings.of(
            trainer.precision, on_gpu, module.optimizer_config.kind, trainer.accumulate_grad_batches,
            module.loss_config.chunk_rows, backbone.vocab_size,
        )  # fmt: skip
        said = {"freeze": module.frozen, "recompute": module.recompute, **settings._asdict()}
        return training_memory(backbone, heads, rows, context, **said)

    return Size(
        counts.total,
        counts.non_embedding,
        flops_per_token(backbone, heads, context, module.frozen, module.unembedded_again),
        rows * context * trainer.max_steps * trainer.accumulate_grad_batches,
        memory(on_gpu),
        memory(True),
    )
