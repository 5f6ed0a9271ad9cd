"""`mtp fit | validate`: LightningCLI over YAML files with omegaconf interpolation, one parser for both.

The parser runs in mode `omegaconf+` without subcommands of its own: interpolation happens once, after every file and
flag is merged, and `${model.heads.n_future}` means the same in a file and on the command line. (Mode `omegaconf`
resolves file by file, and a later override silently never reaches an earlier file.)
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from typing_extensions import override

from mtp_lightning.checkpoint import latest_checkpoint, read_checkpoint
from mtp_lightning.data.datamodule import MTPDataModule
from mtp_lightning.errors import InputError, did_you_mean
from mtp_lightning.model.config import n_trunk_layers
from mtp_lightning.module import MTPModule
from mtp_lightning.paths import find_config
from mtp_lightning.precision import native_precision
from mtp_lightning.tracking.logger import FlushBeforeCheckpoint, MLflowRunLogger

OmegaConf.register_new_resolver("native_precision", native_precision, replace=True)

CHECKPOINTS = "checkpoints"
"""Folder of a run's checkpoints, below `trainer.default_root_dir`."""


class Parser(LightningArgumentParser):
    """Turns every complaint into an `InputError`, with the nearest valid key where one is unknown."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> Any:
        cause = ex
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, InputError):
            raise cause
        raise InputError(message.strip() + self._suggestion(message)) from ex

    def _suggestion(self, message: str) -> str:
        found = re.search(r"(?:Key|key|option|arguments:?)\s*['\"]?-{0,2}([\w./]+)['\"]? is not expected", message)
        found = found or re.search(r"[Uu]nrecognized arguments: --([\w.]+)", message)
        if not found:
            return ""
        known = [action.dest for action in self._actions]
        return did_you_mean(found[1], known) or did_you_mean(found[1].split(".")[-1], [k.split(".")[-1] for k in known])


class RecordConfig(SaveConfigCallback):
    """Gives the logger the resolved configuration, flattened as parameters and whole as a YAML artifact."""

    @override
    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not isinstance(trainer.logger, MLflowRunLogger):
            return
        text = self.parser.dump(self.config, skip_link_targets=False, skip_none=False)
        trainer.logger.log_hyperparams(semantic_parameters(yaml.safe_load(text)))
        trainer.logger.log_text_artifact(text, "config.yaml")


def semantic_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without what a restart may change, since MLflow's parameters are immutable."""
    trainer = {k: v for k, v in config.get("trainer", {}).items() if k not in ("logger", "callbacks")}
    return {k: v for k, v in config.items() if k not in ("config", "ckpt_path", "trainer")} | {"trainer": trainer}


class MTPCLI(LightningCLI):
    """LightningCLI for `MTPModule` and any `MTPDataModule`.

    Args:
        args: command-line arguments behind `mtp fit`.
        parse_only: stop once the configuration is parsed: no object is made, no random state touched.
    """

    def __init__(self, args: Sequence[str], prog: str = "mtp fit", parse_only: bool = False) -> None:
        self.parse_only = parse_only
        super().__init__(
            MTPModule,
            MTPDataModule,
            subclass_mode_data=True,
            parser_class=Parser,
            parser_kwargs={"parser_mode": "omegaconf+", "prog": prog},
            save_config_callback=RecordConfig,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            run=False,
            args=list(args),
        )

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="Checkpoint to start from; `auto`: the newest good one of trainer.default_root_dir, if there is one.",
        )
        parser.link_arguments("model.heads.n_future", "data.init_args.n_future")
        parser.link_arguments("model.backbone.vocab_size", "data.init_args.vocab_size")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        assert isinstance(args, list)
        try:
            self.config = parser.parse_args(resolve_config_paths(args))
        except OmegaConfBaseException as error:
            raise InputError(f"configuration: {str(error).splitlines()[0]} (at '{error.full_key}')") from error
        model = self.config.model
        n_trunk_layers(model.backbone, model.heads) if not self.parse_only else None

    @override
    def _set_seed(self) -> None:
        if not self.parse_only:
            super()._set_seed()

    @override
    def instantiate_classes(self) -> None:
        if not self.parse_only:
            super().instantiate_classes()


def resolve_config_paths(args: Sequence[str]) -> list[str]:
    """Command-line arguments with every `-c FILE` made absolute: in place, else among the shipped ones."""
    resolved, expects_path = [], False
    for arg in args:
        if expects_path:
            arg = str(find_config(arg))
        elif arg.startswith("--config="):
            arg = f"--config={find_config(arg.removeprefix('--config='))}"
        expects_path = arg in ("-c", "--config")
        resolved.append(arg)
    return resolved


def resolve_config(configs: Sequence[Path], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The full configuration, defaults and interpolations included, as `mtp fit` would run it.

    Raises:
        InputError: an unknown key, a wrong type, an impossible model.
    """
    args = [part for path in configs for part in ("-c", str(path))]
    args += [f"--{key}={json_value(value)}" for key, value in overrides.items()]
    cli = MTPCLI(args, parse_only=True)
    return yaml.safe_load(cli.parser.dump(cli.config, skip_link_targets=False, skip_none=False))  # type: ignore[no-any-return]


def json_value(value: Any) -> str:
    return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).split("\n...")[0].strip()


def fit(args: Sequence[str]) -> int:
    """`mtp fit`: train, from the start or from `--ckpt_path`."""
    cli = MTPCLI(args, "mtp fit")
    start_from = checkpoint_to_start_from(cli.config.ckpt_path, Path(cli.trainer.default_root_dir))
    cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=start_from, weights_only=True)
    return 0


def validate(args: Sequence[str]) -> int:
    """`mtp validate`: the validation metrics of `--ckpt_path`."""
    cli = MTPCLI(args, "mtp validate")
    if cli.config.ckpt_path is None:
        raise InputError("mtp validate: --ckpt_path is missing: the checkpoint to validate")
    path = checkpoint_to_start_from(cli.config.ckpt_path, Path(cli.trainer.default_root_dir))
    cli.trainer.validate(cli.model, datamodule=cli.datamodule, ckpt_path=path, weights_only=True)
    return 0




def checkpoint_to_start_from(ckpt_path: str | None, directory: Path) -> str | None:
    """The checkpoint `fit` starts from, checked before anything is written.

    Raises:
        InputError: not a checkpoint; or a new run asked for where another one lies.
    """
    newest = latest_checkpoint(directory / CHECKPOINTS)
    if ckpt_path == "auto":
        return str(newest) if newest else None
    if ckpt_path is not None:
        read_checkpoint(Path(ckpt_path))
        return ckpt_path
    if newest is not None and os.environ.get("LOCAL_RANK", "0") == "0":
        raise InputError(
            f"trainer.default_root_dir: '{directory}' already holds a run ({newest.name}); "
            "give a new folder, or --ckpt_path auto to continue that run"
        )
    return None
