"""`mtp evaluate`: the probes on a checkpoint, what it prints and writes, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpoints import save
from tiny import tiny_backbone

from mtp_lightning.cli import main
from mtp_lightning.data.tasks.execution import Execution
from mtp_lightning.data.tasks.known_tasks import TASKS, task_from_state
from mtp_lightning.data.tasks.polynomial import Polynomial
from mtp_lightning.data.tasks.star_graph import StarGraph
from mtp_lightning.data.tasks.task import Task
from mtp_lightning.errors import InputError
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.probes.exact_match import exact_match
from mtp_lightning.probes.suite import InductionSuite

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checkpoint(vocab_size: int, task: Task | None = None, name: str = "a.ckpt") -> MTPModel:
    torch.manual_seed(0)
    model = MTPModel(tiny_backbone(vocab_size=vocab_size, n_layers=3), HeadsConfig(n_future=2)).eval()
    content = torch.load(save(Path(name), model), weights_only=True)
    if task is not None:
        content["mtp_lightning"] |= {"tokenizer": None, "task": task.state()}
    torch.save(content, name)
    return model


@pytest.mark.parametrize(
    ("command", "task"),
    [
        ("polynomial", Polynomial(modulus=3, degree=2, train_operations=2, test_operations=3, pause_tokens=1)),
        ("star-graph", StarGraph(2, 2, 8)),
        ("execution", Execution(2, 3, "both")),
    ],
)
def test_tasks(command: str, task: Task, capsys: Capture) -> None:
    model = checkpoint(task.vocab_size, task)
    assert main(["evaluate", command, "a.ckpt", "--test_size", "20", "--json", "out.json"]) == 0
    found: dict[str, Any] = json.loads(Path("out.json").read_text())
    sets = task.test_sets(20)
    scores = [(name, task.baselines(name, test).items()) for name, test in sets.items()]
    baselines = {f"{name}/{who}": score for name, of_set in scores for who, score in of_set}
    assert found["metrics"] == exact_match(model, task, sets) | baselines
    assert len(baselines) == (12 if command == "execution" else 0)
    assert found["step"] == 7
    shown = capsys.readouterr().out
    assert all(name in shown for name in found["metrics"])
    assert f"{command.replace('-', '_')} at step 7, 20 questions a test set" in shown


def test_every_task_comes_back_out_of_its_state() -> None:
    assert TASKS.keys() == {kind().name for kind in TASKS.values()}
    for task in (StarGraph(3, 4, 17), Polynomial(5, 3, 2, 4, 1)):
        assert task_from_state(json.loads(json.dumps(task.state()))) == task


def test_induction_on_generated_stories_and_on_a_file(capsys: Capture) -> None:
    checkpoint(256)
    options = ["--count", "3", "--length", "6"]
    assert main(["evaluate", "induction", "a.ckpt", *options, "--out", "heads", "--json", "out.json"]) == 0
    metrics = json.loads(Path("out.json").read_text())["metrics"]
    wanted = {"names_any/accuracy", "repeated/loss/head_2", "prefix_matching/max", "without_top_3/names_any/drop"}
    assert wanted <= metrics.keys()
    assert Path("heads/heads.png").read_bytes().startswith(b"\x89PNG")
    assert "highest prefix-matching scores: " in capsys.readouterr().out
    story = "One day a boy named Tom saw a dog. Tom ran and Tom hid, and so Tom was safe."
    Path("stories.txt").write_text("\n\n".join([story] * 4))
    assert main(["evaluate", "induction", "a.ckpt", "--stories", "stories.txt", "--separator", "\\n\\n", *options]) == 0
    assert main(["evaluate", "induction", "a.ckpt", "--stories", "none", *options]) == 0
    assert "names_any" not in capsys.readouterr().out.split("induction at step 7")[-1]


def test_induction_asks_with_the_tokens_that_texts_have(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(256)
    content = torch.load("a.ckpt", weights_only=True)
    content["mtp_lightning"]["begin_ids"] = [255]
    torch.save(content, "a.ckpt")
    asked: list[InductionSuite] = []

    def measure(model: MTPModel, suite: InductionSuite) -> None:
        asked.append(suite)
        raise InputError("enough")

    monkeypatch.setattr("mtp_lightning.probes.suite.measure_induction", measure)
    assert main(["evaluate", "induction", "a.ckpt", "--count", "3", "--length", "512"]) == 2
    [suite] = asked
    assert suite.begin == 1
    assert set(suite.repeated[:, 0].tolist()) == {255} == set(suite.stories["any"].tokens[:, 0].tolist())
    assert set(suite.repeated[:, 1:].flatten().tolist()) == set(range(255)), "the end of a document is in no text"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["polynomial", "a.ckpt"], "was trained on text or other data, not on 'polynomial'"),
        (["star-graph", "poly.ckpt"], "was trained on 'polynomial', not on 'star_graph'"),
        (["polynomial", "poly.ckpt", "--test_size", "0"], "test_size is 0: it has to be at least 1"),
        (["polynomial", "poly.ckpt", "--test_size", "5000"], "different questions, of which one in 8 is for tests"),
        (["polynomial", "none.ckpt"], "is not a file"),
        (["induction", "poly.ckpt"], "holds no tokenizer: it was not trained on text"),
        (["induction", "a.ckpt", "--count", "0"], "count is 0"),
        (["induction", "a.ckpt", "--stories", "nobody.txt"], "none of the 1 stories has a name"),
        (["induction", "a.ckpt", "--stories", "missing.txt"], "missing.txt"),
        (["induction", "none.ckpt", "--out", "nobody.txt"], "out: 'nobody.txt' is a file, and has to be a folder"),
    ],
)
def test_bad_input(arguments: list[str], says: str, capsys: Capture) -> None:
    checkpoint(256)
    task = Polynomial(modulus=3, degree=1, train_operations=1, test_operations=2)
    checkpoint(task.vocab_size, task, "poly.ckpt")
    Path("nobody.txt").write_text("there was nobody here, and so nothing happened.")
    assert main(["evaluate", *arguments, "--json", "out.json"]) == 2
    assert says in capsys.readouterr().err
    assert not Path("out.json").exists()
