"""The manuals are true: every command parses with its real arguments, those that are quick run in order at a small size,
every file and room that they name is there."""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from manuals import MANUALS, ROOT, Command, blocks, commands

from mtp_lightning import cli
from mtp_lightning.config.lightning_cli import MTPCLI

ALL = [command for manual in MANUALS for command in commands(manual)]
SMALL = (
    "--model.backbone.dim=32 --model.backbone.ffn_dim=64 --model.backbone.n_layers=6 --model.backbone.n_heads=2 "
    "--trainer.max_steps=2 --trainer.val_check_interval=2 --model.schedule.warmup_steps=1 --trainer.accelerator=cpu "
    "--data.batch_size=2 --trainer.enable_progress_bar=false --trainer.log_every_n_steps=1"
).split()
SMALL_TASK = ["--data.test_size=8", "--data.val_examples=4"]
SMALL_TEXT = ["--data.val_windows=2"]
QUICK = ("fit", "validate", "generate", "evaluate", "export", "data", "grid plan", "grid status", "completion")
"""Commands that run here; the others are parsed, and have tests of their own."""


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What each command would have been called with; `fit` and `validate` are parsed and go no further."""
    seen: list[dict[str, Any]] = []

    def recording(target: str) -> Callable[..., int]:
        function = getattr(__import__(target.split(":")[0], fromlist=["_"]), target.split(":")[1])

        @functools.wraps(function)
        def record(*args: Any, **kwargs: Any) -> int:
            if target.split(":")[1] in cli.FROM_YAML:
                MTPCLI(*args, parse_only=True)
            seen.append(kwargs)
            return 0

        return record

    monkeypatch.setattr(cli, "load", recording)
    monkeypatch.setattr("sys.argv", ["mtp"])
    return seen


def test_there_are_commands_of_every_kind() -> None:
    text = "\n".join(command.name.partition(": ")[2] for command in ALL)
    missing = [name for name in cli.COMMANDS if not re.search(rf"^{name}\b", text, re.MULTILINE)]
    assert not missing, "a command that no manual shows"


@pytest.mark.parametrize("command", ALL, ids=lambda command: command.name)
def test_every_command_parses(
    command: Command, parsed: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    words = [word for word in command.words if word != "--print_config"]
    if ">" in words:
        words = words[: words.index(">")]
    assert cli.main(words) == 0, capsys.readouterr().err
    assert len(parsed) == 1


def shrunk(command: Command) -> list[str] | None:
    """The command at a size for a test, or None where it is not run here."""
    words = list(command.words)
    if ">" in words:
        words = words[: words.index(">")]
    if not " ".join(words[:2]).startswith(QUICK):
        return None
    if words[0] in ("fit", "validate"):
        words = [re.sub(r"step-\d+", "step-00000002", word) for word in words]
        task = any("polynomial" in word or "star_graph" in word for word in words)
        if "--print_config" in words or any("strategy/" in word for word in words):
            return None  # the second starts processes: tests/e2e/test_strategies.py
        words += [*SMALL, *(SMALL_TASK if task else SMALL_TEXT)]
        if any("induction" in word for word in words):
            words += ["--trainer.callbacks.count=2"]
        if "tokenizer.json" in words:
            words[words.index("4096")] = "300"
    if words[0] == "generate":
        words += ["--max_new_tokens", "8"]
    if words[0] == "evaluate":
        words += ["--count", "4", "--length", "8"] if words[1] == "induction" else ["--test_size", "4"]
    if words[:2] == ["data", "train-tokenizer"]:
        words[words.index("4096")] = "300"
    return words
