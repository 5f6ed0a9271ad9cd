"""Help: every key that is ours has a text, classes show theirs, nothing is printed twice."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import lightning.pytorch as pl
import pytest
from jsonargparse import ArgumentParser, set_parsing_settings
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy

import callbacks
from mtp_lightning.cli import COMMANDS, FROM_YAML, load, main
from mtp_lightning.config.keys.command_parser import command_parser
from mtp_lightning.config.keys.help_format import is_noise, type_name
from mtp_lightning.config.lightning_cli import MTPCLI
from mtp_lightning.data import MTPDataModule
from mtp_lightning.data.tasks.task import Task


@pytest.fixture(autouse=True)
def attribute_docstrings() -> Iterator[None]:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    yield
    set_parsing_settings(docstring_parse_attribute_docstrings=False)


def without_text(parser: ArgumentParser) -> list[str]:
    return [action.dest for action in parser._actions if not is_noise(action) and not (action.help or "").strip()]


def test_every_key_of_fit_has_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        MTPCLI(["--help"], parse_only=True)
    help_ = capsys.readouterr().out
    for part in (
        "--model.heads.n_future INT",
        "number of prediction heads. (default: 1)",
        "--data.help TokenDataModule",
    ):
        assert part in help_
    assert "(type:" not in help_
    assert help_.index("model.heads:") < help_.index("trainer:")
    cli = MTPCLI(["-c", "conf/base.yaml", "-c", "conf/data/python_stdlib.yaml"], parse_only=True)
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    fresh = cli.init_parser(prog="mtp fit")
    cli._add_arguments(fresh)
    assert without_text(fresh) == []


def ours() -> list[type]:
    for module in pkgutil.iter_modules(callbacks.__path__):
        importlib.import_module(f"callbacks.{module.name}")
    importlib.import_module("mtp_lightning.strategies.zero")
    importlib.import_module("mtp_lightning.data.tasks.known_tasks")
    importlib.import_module("mtp_lightning.data.tasks.datamodule")
    importlib.import_module("mtp_lightning.strategies.fsdp2")
    found, todo = [], [pl.Callback, Logger, Strategy, MTPDataModule, Task]
    while todo:
        cls = todo.pop()
        todo += cls.__subclasses__()
        configurable = cls.__module__.startswith(("callbacks.", "mtp_lightning.")) and not inspect.isabstract(cls)
        if configurable and cls.__name__ != "StartRun" and not cls.__name__.startswith("_"):
            found.append(cls)
    return sorted(set(found), key=lambda cls: cls.__qualname__)


def test_classes_are_found() -> None:
    assert {"TaskDataModule", "DecodingProbe", "MLflowRunLogger", "FSDP2Strategy"} <= {cls.__name__ for cls in ours()}


@pytest.mark.parametrize("cls", ours(), ids=lambda cls: cls.__name__)
def test_every_argument_of_our_classes_has_its_text(cls: type) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(cls, "init_args")
    assert without_text(parser) == []


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--data.help", "TokenDataModule"], ["--data.source.kind", "`stories`: children's", "--data.context INT"]),
        (["--trainer.callbacks.help", "callbacks.decoding.DecodingProbe"], ["prompts INT", "length of a prompt"]),
        (["--trainer.logger.help", "MLflowRunLogger"], ["experiment TEXT", "One MLflow run"]),
    ],
)
def test_help_on_a_class(flags: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", *flags])
    out = " ".join(capsys.readouterr().out.split())
    assert [part for part in parts if part not in out] == []
    assert "usage" not in out


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in FROM_YAML])
def test_every_argument_of_a_command_has_its_text(name: str) -> None:
    parser = command_parser(load(COMMANDS[name][0]), f"mtp {name}")
    assert without_text(parser) == []
    assert "(type:" not in parser.format_help()


def test_the_description_is_whole_and_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["ui", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert out.count("Start the MLflow UI") == 1
    assert "to an experiment's charts: the comparison that its grid drew" in out
    assert "--open Open the first link" in out


@pytest.mark.parametrize(
    ("hint", "name"),
    [
        (int | None, "INT"),
        (list[int] | None, "[INT, ...]"),
        (tuple[float, float], "[NUMBER, ...]"),
        (dict[str, int], "{KEY: INT}"),
        (str | int, "TEXT|INT"),
    ],
)
def test_types_have_short_names(hint: object, name: str) -> None:
    assert type_name(hint) == name
