"""`mtp fit | validate`: LightningCLI over YAML files with omegaconf interpolation, one parser for both.

The parser runs in mode `omegaconf+` without subcommands of its own: interpolation happens once, after every file and
flag is merged, and `${model.heads.n_future}` means the same in a file and on the command line. (Mode `omegaconf`
resolves file by file, and a later override silently never reaches an earlier file.)
"""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from jsonargparse import set_parsing_settings
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from typing_extensions import override

from mtp_lightning.config.config_files import find_config
from mtp_lightning.config.cross_checks import check_trainer, refused_by_trainer
from mtp_lightning.config.keys.groups import refuse_wrong_groups
from mtp_lightning.config.keys.key_origins import KeyOrigins, is_text
from mtp_lightning.config.keys.linked_keys import LINKS, SEED_KEY, refuse_linked_keys
from mtp_lightning.config.keys.parser import Parser, input_error_behind, refused_by_class
from mtp_lightning.config.keys.plain_text import keep_text
from mtp_lightning.config.memory import check_memory
from mtp_lightning.config.native_precision import native_precision
from mtp_lightning.config.run.starting import StartRun
from mtp_lightning.config.trainer_ranges import check_seed
from mtp_lightning.data.datamodule import MTPDataModule
from mtp_lightning.errors import InputError
from mtp_lightning.model.training.later import made_later
from mtp_lightning.module import MTPModule
from mtp_lightning.strategies.check import shards_as_made
from mtp_lightning.strategies.slurm import check_tasks, without_requeueing
from mtp_lightning.tracking.keep_record import KeepRecord

# Lightning 2.6 with torch 2.13; nothing a user could do about it.
warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
# `mtp fit` on a machine that has Slurm is no mistake.
warnings.filterwarnings("ignore", ".*srun. command is available", UserWarning)

keep_text()
OmegaConf.register_resolver("native_precision", native_precision, replace=True)


PARSER = {
    "parser_mode": "omegaconf+",
    "allow_abbrev": False,
    "usage": "%(prog)s -c FILE [-c FILE ...] [--KEY VALUE ...]",
}
HELP = {
    "config": "A YAML file with keys from below. Shipped ones are found as conf/base.yaml and so on, from any folder.",
    SEED_KEY: "Of the weights, of the order of the data, and of all else that is random.",
    "data": "A data module: `class_path: mtp_lightning.data.TokenDataModule` for text, or TaskDataModule for synthetic "
    "tasks, and its `init_args`.",
    "trainer.callbacks": "Callbacks, each as `class_path: callbacks.decoding.DecodingProbe` and its `init_args`; "
    "`callbacks+:` in a file adds to those of the files before it.",
    "trainer.logger": "`class_path: mtp_lightning.tracking.logger.MLflowRunLogger` and its `init_args`; false records "
    "nothing.",
    "trainer.default_root_dir": "The run's own folder: its checkpoints and state.",
}
"""Texts in place of Lightning's."""
DESCRIPTION = """
Every key below can stand in a YAML file or on the command line: `model: {heads: {n_future: 4}}` or
`--model.heads.n_future 4`. Later files and flags win over earlier ones; `--KEY+ VALUE` adds to a list; null unsets.

Example: mtp fit -c conf/base.yaml -c conf/model/tiny.yaml -c conf/data/python_stdlib.yaml --trainer.max_steps 2000

Classes have keys of their own: `mtp fit --data.help TokenDataModule` (or TaskDataModule),
`--trainer.callbacks.help callbacks.decoding.DecodingProbe`,
`--trainer.logger.help mtp_lightning.tracking.logger.MLflowRunLogger`.
"""


class MTPCLI(LightningCLI):
    """LightningCLI for `MTPModule` and any `MTPDataModule`.

    Args:
        args: command-line arguments after `mtp fit`.
        flags: what a message says of a key that a flag has set.
        parse_only: stop once the configuration is parsed: no object is made, no random state touched.
    """

    def __init__(
        self, args: Sequence[str], prog: str = "mtp fit", parse_only: bool = False, flags: str = "on the command line"
    ) -> None:
        self.prog, self.parse_only, self.flags = prog, parse_only, flags
        args = resolve_config_paths(args)
        self.origins = KeyOrigins(args, flags)
        # Reading what stands below a class's attributes costs half a second, and only help shows it.
        asks_help = any(arg in ("-h", "--help") or arg.partition("=")[0].endswith(".help") for arg in args)
        set_parsing_settings(docstring_parse_attribute_docstrings=asks_help)
        with naming_the_place(self.origins):
            super().__init__(
                MTPModule,
                MTPDataModule,
                subclass_mode_data=True,
                parser_class=Parser,
                parser_kwargs={"prog": prog, "description": DESCRIPTION, **PARSER},
                save_config_callback=StartRun,
                save_config_kwargs={"save_to_log_dir": False},
                seed_everything_default=0,
                trainer_defaults={"callbacks": [KeepRecord()]},
                auto_configure_optimizers=False,
                run=False,
                args=list(args),
            )

    def parsed_from(self, args: Sequence[str]) -> "MTPCLI":
        """What `MTPCLI(args, parse_only=True)` gives, by the parser of this one: making one takes as long as parsing.

        Raises:
            InputError: an unknown key, a wrong type.
        """
        other = copy.copy(self)
        args = resolve_config_paths(args)
        other.origins = KeyOrigins(args, self.flags)
        with naming_the_place(other.origins):
            other.parse_arguments(self.parser, list(args))
        return other

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="Checkpoint to start from; `auto`: the newest good one of trainer.default_root_dir, if there is one.",
        )
        if self.prog == "mtp validate":
            parser.add_argument("--json", type=str | None, default=None, help="Write the metrics to this file too.")
        for action in parser._actions:
            action.help = HELP.get(action.dest, action.help)
        for sources, target, compute in LINKS:
            parser.link_arguments(sources, target, compute_fn=compute)

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        assert isinstance(args, list)
        seed = self.origins.find(SEED_KEY)
        if seed is not None and isinstance(seed.value, bool):
            check_seed(seed.value)  # Lightning takes true and false, the data that follow from it do not
        try:
            self.config = parser.parse_args(args)
        except OmegaConfBaseException as error:
            raise InputError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
        keys = [a.dest for a in parser._actions if not a.dest.endswith(".help")]
        refuse_wrong_groups(self.config.as_dict(), keys, {"model": MTPModule, "trainer": pl.Trainer})
        refuse_linked_keys(self.config, self.origins)

    @override
    def _set_seed(self) -> None:
        if not self.parse_only:
            check_seed(self._get(self.config, SEED_KEY))
            super()._set_seed()

    @override
    def before_instantiate_classes(self) -> None:
        if not self.parse_only:
            trains = self.prog == "mtp fit"
            check_trainer(self.config, warn=True, trains=trains)
            if trains:
                check_memory(self.config.as_dict())

    @override
    def instantiate_classes(self) -> None:
        if not self.parse_only:
            config = self.config
            begun, frozen = config.model.init.path is not None, config.model.freeze != "none"
            with made_later(shards_as_made(config.trainer.strategy, begun, frozen)):
                super().instantiate_classes()

    @override
    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        plugins = without_requeueing(self._get(self.config_init, "trainer.plugins"))
        if plugins is not None:
            kwargs["plugins"] = plugins
        given = self._get(self.config_init, "trainer.callbacks") or []
        if not any(isinstance(one, Checkpoint) for one in (given if isinstance(given, list) else [given])):
            kwargs["enable_checkpointing"] = False  # or Lightning would add one of its own
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except InputError:
            raise
        except Exception as error:  # Lightning and what it imports raise what they like of a setting
            raise refused_by_trainer(error, self.config.trainer.as_dict()) from error
        check_tasks(trainer)
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks.sort(key=lambda callback: not isinstance(callback, StartRun))  # which comes first; the rest stays
        return trainer

    @property
    def start(self) -> StartRun:
        return next(c for c in self.trainer.callbacks if isinstance(c, StartRun))  # type: ignore[attr-defined]


@contextmanager
def naming_the_place(origins: KeyOrigins) -> Iterator[None]:
    """What is wrong with a value, with the file or flag that it stands in."""
    try:
        yield
    except ValueError as error:
        refused = input_error_behind(error) or refused_by_class(error)
        if refused is None:
            raise
        raise InputError(f"{refused}{origins.where(str(refused))}") from error


def resolve_config_paths(args: Sequence[str]) -> list[str]:
    """Command-line arguments with every `-c FILE` made absolute: in place, else among the shipped ones."""
    resolved, expects_path = [], False
    for arg in args:
        config = arg if expects_path else arg.removeprefix("--config=")
        if (expects_path or config != arg) and not is_text(config):
            arg = arg.removesuffix(config) + str(find_config(config))
        expects_path = arg in ("-c", "--config")
        resolved.append(arg)
    return resolved
