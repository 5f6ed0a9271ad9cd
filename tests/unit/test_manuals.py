"""The manuals are true: every command parses with its real arguments, those that are quick run in order at a small
size, and every file that they name is there."""

import functools
import importlib.util
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from manuals import MANUALS, ROOT, Command, blocks, commands, commands_of_page

import mtp_lightning.completion  # noqa: F401 - before `cli.load`, which it takes, is replaced here
from mtp_lightning import cli
from mtp_lightning.config.keys.command_parser import class_of
from mtp_lightning.config.lightning_cli import MTPCLI

PAGES = sorted((ROOT / "experiments").glob("*/README.md"))
"""Of experiments: their commands are parsed too, and too long to be run."""
ALL = [command for manual in MANUALS for command in commands(manual)]
SMALL_YAML = """
trainer:
  callbacks:
    - {class_path: callbacks.heartbeat.Heartbeat}
    - {class_path: callbacks.decoding.DecodingProbe, init_args: {prompts: 1, validation_prompts: 0, new_tokens: 4}}
    - {class_path: callbacks.checkpointing.PeriodicCheckpoint}
"""
SMALL = [
    *(f"--model.backbone.{key}" for key in ("dim=32", "ffn_dim=64", "n_layers=6", "n_heads=2")),
    *(f"--trainer.{key}" for key in ("max_steps=2", "val_check_interval=2", "log_every_n_steps=1", "accelerator=cpu")),
    *("--model.schedule.warmup_steps=1", "--data.batch_size=2", "--trainer.enable_progress_bar=false"),
]
SMALL_DATA = {
    "python_stdlib": ["--data.val_windows=2", "--data.source.max_documents=40", "--data.context=64"],
    "infilling": ["--data.val_windows=2", "--data.source.max_documents=40", "--data.context=64"],
    "stories": ["--data.val_windows=2", "--data.source.max_documents=200", "--data.context=64"],
    "text": ["--data.val_windows=2", "--data.context=64"],
    "mixture": [
        "--data.mixture=[{source: {kind: text, path: corpus}}, {source: {kind: stories, max_documents: 200}}]",
        *("--data.val_windows=2", "--data.context=64"),
    ],
    "pairs": ["--data.val_windows=2", "--data.context=64"],
    "polynomial": ["--data.test_size=8", "--data.val_examples=8", "--trainer.callbacks.questions=2"],
    "execution": ["--data.test_size=8", "--data.val_examples=8", "--trainer.callbacks.questions=2"],
    "star_graph": ["--data.test_size=8", "--data.val_examples=8", "--trainer.callbacks.questions=2"],
}
SMALL_PROBE = [f"--trainer.callbacks.{key}=2" for key in ("stories", "quick_stories", "rows", "length")]
SMALL_LONG = ["--trainer.callbacks.lengths=[70, 80]", *(f"--trainer.callbacks.{key}=1" for key in ("keys", "texts"))]
QUICK = ("fit", "validate", "generate", "evaluate", "export", "data", "grid plan", "grid status", "completion")
"""Commands that run here; the others are parsed, and have tests of their own."""
PROBES = ("induction", "polynomial", "star-graph", "execution", "pairs")
"""Of `mtp evaluate`, those that need no file of a benchmark."""


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What each command would have been called with; `fit` and `validate` are parsed and go no further."""
    seen: list[dict[str, Any]] = []
    real = cli.load

    def recording(target: str) -> Callable[..., int]:
        function = real(target)

        @functools.wraps(function)
        def record(*args: Any, **kwargs: Any) -> int:
            if target.endswith(":fit"):
                MTPCLI(*args, parse_only=True)
            seen.append(kwargs)
            return 0

        owner = class_of(function)
        if owner is not None:  # a method is looked up again in an object of its class
            monkeypatch.setattr(owner, function.__name__, record)
        return record

    monkeypatch.setattr(cli, "load", recording)
    monkeypatch.setattr("sys.argv", ["mtp"])
    return seen


def test_there_are_commands_of_every_kind() -> None:
    text = "\n".join(command.name.partition(": ")[2] for command in ALL)
    missing = [name for name in cli.COMMANDS if not re.search(rf"^{name}\b", text, re.MULTILINE)]
    assert not missing, "a command that no manual shows"


@pytest.mark.parametrize(
    "command",
    [*ALL, *(command for page in PAGES for command in commands_of_page(page))],
    ids=lambda command: command.name,
)
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
    if not " ".join(words).startswith(QUICK):
        return None
    if words[0] == "fit":
        if "--print_config" in words or any("strategy/" in word for word in words):
            return None  # ends the process; starts others, as tests/e2e/test_strategies.py does
        words[1:1] = [*words[1:3], "-c", "small.yaml"]
        words += SMALL
        words += next(flags for data, flags in SMALL_DATA.items() if f"conf/data/{data}.yaml" in words)
        words += SMALL_PROBE if "conf/probes/induction.yaml" in words else []
        words += SMALL_LONG if "conf/probes/long_context.yaml" in words else []
    if "gguf" in words and importlib.util.find_spec("gguf") is None:
        return None
    if words[0] == "generate":
        words += ["--max_new_tokens", "4"]
    if words[0] == "evaluate" and words[1] not in PROBES:
        return None  # needs a file of the benchmark, and has tests of its own
    if words[0] == "evaluate":
        small = {"induction": ["--count", "4", "--length", "8"], "pairs": ["--count", "4"]}
        words += small.get(words[1], ["--test_size", "4"])
    if words[:2] in (["data", "plant"], ["data", "corruptions"]):
        words += ["--max_documents", "40", *(["--count", "4"] if words[1] == "corruptions" else [])]
    if words[:2] == ["data", "sample"]:
        words += ["--max_new_tokens", "4", "--limit", "4"]
    return ["300" if word == "4096" else word for word in words]


def test_no_two_commands_make_the_same() -> None:
    """What exists is refused, and the next test runs all of them in one folder."""
    made = [
        words[words.index("--out") + 1] if "--out" in words else words[2]
        for command in ALL
        if (words := shrunk(command))
        and (words[0] == "export" or (words[0] == "data" and words[1] not in ("compare-tokenizers", "corruptions")))
    ]
    assert sorted(made) == sorted(set(made))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("manuals", [MANUALS[:1], pytest.param(MANUALS, marks=pytest.mark.slow)], ids=["README", "all"])
def test_the_quick_ones_run_in_order(
    manuals: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one folder, from the first command of the README to the last of the last manual."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["mtp"])
    (tmp_path / "small.yaml").write_text(SMALL_YAML)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (tmp_path / "corpus").mkdir()
    chance = random.Random(0)  # words enough for a tokenizer of 300 tokens
    for i in range(8):
        words = ("".join(chance.choices("abcdefgh", k=4)) for _ in range(300))
        (tmp_path / "corpus" / f"{i}.txt").write_text(f"story number {i}, of Ann and Ben: {' '.join(words)}")
    rows = (f'{{"prompt": "Who is number {i}? ", "completion": "Ann {i}."}}\n' for i in range(40))
    (tmp_path / "pairs.jsonl").write_text("".join(rows))
    for command in ALL:
        words = shrunk(command) if command.manual in manuals else None
        assert words is None or cli.main(words) == 0, f"{command.name}\n{capsys.readouterr().err}"
    assert (tmp_path / "shards/corpus/meta.json").is_file()
    assert (tmp_path / "served" / "config.json").is_file()


def test_the_grid_of_the_manual_is_a_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.yaml").write_text(
        next(body for language, body in blocks(ROOT / "mtp_lightning/grid/README.md") if language == "yaml")
    )
    assert cli.main(["grid", "plan", "grid.yaml"]) == 0
    assert "12 cells: 12 missing; 12 to run" in capsys.readouterr().out
    (tmp_path / "chain.yaml").write_text(
        [body for language, body in blocks(ROOT / "mtp_lightning/grid/README.md") if language == "yaml"][2]
    )
    assert cli.main(["grid", "plan", "chain.yaml", "--json", "plan.json"]) == 0
    assert "12 cells: 12 missing; 12 to run" in capsys.readouterr().out
    labels = [row["label"] for row in json.loads((tmp_path / "plan.json").read_text())["cells"]]
    assert labels[4:7:2] == ["finetune seed=0", "heads heads=copy seed=0"]


@pytest.mark.slow  # some eighty configurations
def test_the_ladder_of_the_manual_is_a_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ladder.yaml").write_text(
        [body for language, body in blocks(ROOT / "mtp_lightning/grid/README.md") if language == "yaml"][1]
    )
    assert cli.main(["grid", "plan", "ladder.yaml"]) == 0
    assert "then 16 cells: 8 arms at the best lr" in capsys.readouterr().out


@pytest.mark.parametrize("manual", MANUALS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_files_are_there(manual: Path) -> None:
    text = manual.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if not (manual.parent / link.partition("#")[0]).exists()]
    places = (manual.parent, ROOT, ROOT / "mtp_lightning")
    named = [name for name in re.findall(r"`([\w./]+/[\w./]*)`", text) if not name.startswith(("runs/", "train/"))]
    files = [name for name in named if name.endswith((".py", ".yaml")) or name.split("/")[0] in ("conf", "tests")]
    missing += [name for name in files if not any((place / name).exists() for place in places)]
    assert not missing


def test_the_table_of_metrics_has_what_runs_log() -> None:
    table = (ROOT / "mtp_lightning/tracking/README.md").read_text(encoding="utf-8")
    package = ROOT / "mtp_lightning"
    sources = [*(ROOT / "callbacks").glob("*.py"), package / "module.py", package / "metrics.py"]
    name = re.compile(r'"((?:train|val|data|perf|decode|model|probe)/\w[\w/]*)')
    named = {found for path in sources for found in name.findall(path.read_text(encoding="utf-8"))}
    assert {"perf/step_seconds", "val/bits_per_byte", "probe/pairs/exact"} <= named
    assert not [found for found in named if f"`{found}" not in table]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
