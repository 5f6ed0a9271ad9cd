"""Typing errors are found in the sources, and nothing that the real parser takes is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser
from test_config_help import ours

from mtp_lightning.cli import main
from mtp_lightning.config.config_files import CONF_DIR
from mtp_lightning.config.keys.help_format import is_noise
from mtp_lightning.config.keys.key_origins import KeyOrigins, Origin
from mtp_lightning.config.keys.known_keys import TOP_LEVEL, check_keys, parameters, refusal
from mtp_lightning.config.lightning_cli import MTPCLI
from mtp_lightning.errors import InputError

TOKENS = ["--data.class_path=mtp_lightning.data.TokenDataModule"]
TASK = ["--data=mtp_lightning.data.TaskDataModule", "--data.class_path=mtp_lightning.data.TaskDataModule"]


def refused(*args: str) -> str | None:
    try:
        check_keys(KeyOrigins(args))
    except InputError as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def keys() -> list[str]:
    """All that the real parser knows."""
    cli = MTPCLI(["-c", "conf/base.yaml", "-c", "conf/data/python_stdlib.yaml"], parse_only=True)
    return [action.dest for action in cli.parser._actions if not is_noise(action) and action.dest != "help"]


def test_no_key_of_the_real_parser_is_refused(keys: list[str]) -> None:
    assert len(keys) > 70
    assert {key.split(".")[0] for key in keys} <= set(TOP_LEVEL)
    assert [key for key in keys if refusal(Origin(tuple(key.split(".")), None, "", 1))] == []


def test_every_typing_error_in_them_is_refused(keys: list[str]) -> None:
    wrong = [f"{key}_" for key in keys]
    assert [key for key in wrong if not refusal(Origin(tuple(key.split(".")), None, "", 1))] == []


@pytest.mark.parametrize("cls", ours(), ids=lambda cls: cls.__name__)
def test_arguments_of_our_classes_are_those_of_the_real_parser(cls: type) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(cls, "a")
    real = {action.dest.split(".")[1] for action in parser._actions if action.dest.startswith("a.")}
    found = parameters(f"{cls.__module__}.{cls.__qualname__}")
    assert found is None or set(found) == real


@pytest.mark.parametrize("file", sorted(CONF_DIR.rglob("*.yaml")), ids=lambda p: p.stem)
def test_no_shipped_file_is_refused(file: Path) -> None:
    assert refused("-c", str(CONF_DIR / "base.yaml"), "-c", str(file)) is None


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--model.heads.n_futur", "4"], "no key 'model.heads.n_futur'; did you mean 'model.heads.n_future'?"),
        (["--modl.heads.n_future=4"], "no key 'modl'; did you mean 'model'?"),
        (["--trainer.max_step=4"], "did you mean 'trainer.max_steps'?"),
        (["--model.loss.weights.ration=1"], "did you mean 'model.loss.weights.ratio'?"),
        (["--model={heads: {n_futur: 4}}"], "no key 'model.heads.n_futur'"),
        ([*TOKENS, "--data.contxt=3"], "no key 'data.contxt'; did you mean 'data.context'?"),
        ([*TOKENS, "--data.init_args.source.knd=text"], "did you mean 'data.init_args.source.kind'?"),
        (
            ["--trainer.callbacks+=[{class_path: callbacks.decoding.DecodingProbe, init_args: {promts: 3}}]"],
            "no key 'trainer.callbacks.init_args.promts'; did you mean 'trainer.callbacks.init_args.prompts'?",
        ),
        (["--trainer.max_step=4", "--modl.x=3"], "no key 'modl'"),
    ],
)
def test_a_typing_error_is_refused(args: list[str], says: str) -> None:
    message = refused(*args)
    assert message is not None
    assert says in message
    assert message.count("there is no key") == len([arg for arg in args if "data.class_path" not in arg]) - (
        "--model.heads.n_futur" in args
    )


@pytest.mark.parametrize(
    "args",
    [
        ["--data.contxt=3"],  # of which class, nobody has said
        ["--data.contxt=3", *TOKENS],  # the class comes later: the parser may drop the key
        [*TOKENS, "--data.class_path=elsewhere.Data", "--data.mine=3"],
        [*TASK, "--data.task.class_path=mtp_lightning.data.StarGraph", "--data.task.degree=3"],
        [*TASK, "--data.init_args.task={class_path: mtp_lightning.data.StarGraph, init_args: {degree: 3}}"],
        ["--trainer.logger.class_path=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir=x"],
        ["--trainer.callbacks.prompts=3"],
        ["--trainer.strategy.stage=3"],
        ["--model.loss.weights.lam={0.0: 0.3, 0.5: 0.1}"],
        ["--print_config"],
    ],
)
def test_what_the_sources_do_not_say_is_left_to_the_parser(args: list[str]) -> None:
    assert refused(*args) is None


def test_it_is_answered_without_lightning() -> None:
    code = (
        "import sys; from mtp_lightning.cli import main\n"
        "assert main(['fit']) == main(['fit', '-c', 'conf/base.yaml', '--model.heads.n_futur=4']) == 2\n"
        "print(sorted({'torch', 'lightning', 'mlflow'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"


def test_nothing_given_is_answered_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit"]) == 2
    assert "mtp fit -c conf/base.yaml" in capsys.readouterr().err
