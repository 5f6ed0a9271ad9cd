"""`mtp evaluate`: a benchmark asked of a checkpoint, from the file of problems to numbers in MLflow."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpoints import save
from test_evaluation_samples import no_file_larger_than
from tiny import tiny_backbone

from mtp_lightning.cli import main
from mtp_lightning.data.tasks.polynomial import Polynomial
from mtp_lightning.evaluation.results.record import record
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel

Capture = pytest.CaptureFixture[str]
QUICK = ["--samples", "3", "--k", "[1, 2]", "--max_new_tokens", "4", "--data", "gsm8k.jsonl"]

pytestmark = pytest.mark.usefixtures("shapes_unchecked")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("mtp_lightning.evaluation.tasks.gsm8k.SHOTS", "")  # to be read by the model
    rows = [{"question": f"What is {i} + 1?", "answer": f"{i} + 1\n#### {i + 1}"} for i in range(3)]
    Path("gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def checkpoint(name: str = "a.ckpt", context: int | None = None, task: Polynomial | None = None) -> None:
    torch.manual_seed(0)
    model = MTPModel(tiny_backbone(vocab_size=256, n_layers=3), HeadsConfig(n_future=2))
    content = torch.load(save(Path(name), model), weights_only=True)
    content["mtp_lightning"]["context"] = context
    if task is not None:
        content["mtp_lightning"] |= {"tokenizer": None, "task": task.state()}
    torch.save(content, name)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_benchmark_from_file_to_numbers(capsys: Capture) -> None:
    checkpoint()
    assert main(["evaluate", "gsm8k", "a.ckpt", *QUICK, "--json", "out.json"]) == 0
    shown = capsys.readouterr().out
    found: dict[str, Any] = json.loads(Path("out.json").read_text())
    assert (found["task"], found["domain"], found["problems"], found["step"]) == ("gsm8k", "maths", 3, 7)
    wanted = {"pass_at_1", "temperature_at_1", "pass_at_2", "flexible/pass_at_1", "majority_at_2", "tokens_per_forward"}
    wanted |= {"bytes_per_forward"}
    assert {f"eval/gsm8k/{name}" for name in wanted} <= found["metrics"].keys()
    assert "gsm8k at step 7, 3 problems" in shown
    assert "tokens per forward" in shown
    for t, at in zip((0.2, 0.8), found["temperatures"]):
        assert at["temperature"] == t
        assert at["samples"] == f"evaluation/gsm8k_step_7_temperature_{t}.jsonl"
        assert len(Path(at["samples"]).read_text().splitlines()) == 9
        assert sum(at["ended"].values()) == sum(at["verdicts"].values()) == 9
        assert 4 <= at["counts"]["tokens"] <= 9 * 4
    before = everything(Path("evaluation"))
    assert main(["evaluate", "gsm8k", "a.ckpt", *QUICK, "--heads_used", "1", "--batch_size", "2"]) == 0
    assert everything(Path("evaluation")) == before
    said = capsys.readouterr()
    assert "per forward" not in said.out, "nothing was written with one head"
    assert "9 samples, 0 counted with heads_used 1: tokens per forward and acceptance are not known" in said.err
    more = ["--samples", "4", "--heads_used", "1", "--json", "out.json"]
    assert main(["evaluate", "gsm8k", "a.ckpt", *QUICK, *more]) == 0
    said = capsys.readouterr()
    assert "12 samples, 3 counted with heads_used 1: tokens per forward and acceptance are of 3 samples" in said.err
    found = json.loads(Path("out.json").read_text())
    assert found["metrics"]["eval/gsm8k/tokens_per_forward"] == 1
    assert [at["counts"]["samples"] for at in found["temperatures"]] == [3, 3]
    assert main(["evaluate", "gsm8k", "a.ckpt", *QUICK, "--temperatures", "[0]", "--k", "[1]", "--limit", "2"]) == 0
    assert len(Path("evaluation/gsm8k_step_7_temperature_0.jsonl").read_text().splitlines()) == 2
    assert "warning" not in capsys.readouterr().err
    assert main(["evaluate", "gsm8k", "a.ckpt", *QUICK, "--samples", "2", "--limit", "2"]) == 0
    said = "has 12 samples, of which 4 are asked for, 9 counted with heads_used auto: tokens per forward and acceptance"
    assert f"{said} are of 9 samples" in capsys.readouterr().err


def test_two_sets_of_pairs_stand_apart(capsys: Capture) -> None:
    checkpoint()
    for name in ("prose", "maths"):
        Path(f"{name}.jsonl").write_text(json.dumps({"prompt": f"{name} ", "completion": "a b"}))
    ask = ["evaluate", "rouge", "a.ckpt", "--max_new_tokens", "4", "--json", "out.json", "--data"]
    assert main([*ask, "prose.jsonl", "--samples", "5", "--temperatures", "[0, 0.5]"]) == 0, "it has no k"
    assert main([*ask, "maths.jsonl"]) == 2
    assert "give another --out or --name" in capsys.readouterr().err
    assert main([*ask, "maths.jsonl", "--name", "maths", "--domain", "maths"]) == 0
    found = json.loads(Path("out.json").read_text())
    assert (found["task"], found["domain"]) == ("rouge-maths", "maths")
    assert "eval/rouge-maths/rouge_l" in found["metrics"]
    assert [at["samples"] for at in found["temperatures"]] == ["evaluation/rouge-maths_step_7_temperature_0.jsonl"]


def test_no_flag_is_silently_ignored(capsys: Capture) -> None:
    for arguments, says in (
        (["rouge", "--k", "[1, 2]"], "k is [1, 2]: rouge has no pass@k"),
        (["infilling", "--turns", "3"], "turns is 3: infilling has no public tests"),
        (["gsm8k", "--turns", "3"], "turns is 3: gsm8k has no public tests"),
    ):
        assert main(["evaluate", arguments[0], "a.ckpt", "--data", "gsm8k.jsonl", *arguments[1:]]) == 2
        assert says in capsys.readouterr().err
    assert main(["evaluate", "induction", "a.ckpt", "--separator", "x"]) == 2
    assert "separator is 'x': it is of a file, and stories is 'generated'" in capsys.readouterr().err


def test_temperatures_have_files_of_their_own() -> None:
    checkpoint()
    near = ["--temperatures", "[0.12345671, 0.12345672, 0.5]", "--limit", "1", "--samples", "2"]
    assert main(["evaluate", "gsm8k", "a.ckpt", *QUICK, *near]) == 0
    names = {path.name for path in Path("evaluation").glob("*.jsonl")}
    assert names == {f"gsm8k_step_7_temperature_{t}.jsonl" for t in ("0.12345671", "0.12345672", "0.5")}


def test_numbers_go_to_the_runs_own_mlflow_run(capsys: Capture) -> None:
    from test_tracking_fakes import fresh_store

    from mtp_lightning.tracking.read import history
    from mtp_lightning.tracking.store import connect, default_tracking_uri

    fresh_store(Path("runs"))
    uri = default_tracking_uri()
    client = connect(uri)
    run_id = client.create_run(client.create_experiment("mtp/test")).info.run_id
    Path("runs/a/checkpoints").mkdir(parents=True)
    Path("runs/a/mlflow_run_id").write_text(run_id)
    checkpoint("runs/a/checkpoints/step=7.ckpt")
    assert main(["evaluate", "gsm8k", "runs/a", *QUICK]) == 0
    assert history(uri, run_id, ["eval/gsm8k/pass_at_1"]) == {"eval/gsm8k/pass_at_1": [(7, 0.0)]}
    artifacts = {file.path for file in client.list_artifacts(run_id, "evaluation")}
    assert artifacts == {f"evaluation/gsm8k_step_7_temperature_{t}.jsonl" for t in (0.2, 0.8)}
    capsys.readouterr()
    assert main(["evaluate", "gsm8k", "runs/a", *QUICK, "--limit", "1"]) == 0
    assert "not recorded in MLflow: --limit asks for a part of the problems alone" in capsys.readouterr().err
    assert history(uri, run_id, ["eval/gsm8k/pass_at_1"]) == {"eval/gsm8k/pass_at_1": [(7, 0.0)]}
    assert main(["evaluate", "gsm8k", "runs/a", *QUICK, "--limit", "1", "--name", "one"]) == 0
    assert history(uri, run_id, ["eval/gsm8k-one/pass_at_1"]) == {"eval/gsm8k-one/pass_at_1": [(7, 0.0)]}
    Path("runs/a/mlflow_run_id").write_text("0" * 32)
    capsys.readouterr()
    assert main(["evaluate", "gsm8k", "runs/a/checkpoints/step=7.ckpt", *QUICK]) == 0
    assert "not recorded in MLflow: trainer.logger" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--data", "missing.jsonl"], "data: cannot read 'missing.jsonl': No such file or directory"),
        (["--data", "other.jsonl"], "row 1 has 'task_id', 'prompt', and a row of GSM8K has 'question' (str)"),
        (["--data", "bad.jsonl"], "data: 'bad.jsonl', line 2, is not JSON"),
        (["--data", "empty.jsonl"], "data: 'empty.jsonl' has no rows"),
        (["--k", "[1, 4]"], "k is 4, and pass@k needs at least k samples: samples is 3"),
        (["--k", "[0]"], "k is [0]: it has to be a list, each item a whole number, at least 1"),
        (["--k", "[]"], "k is []: it has to be a list"),
        (["--temperatures", "[]"], "temperatures is []: it has to be a list"),
        (["--k", "[1, 1]"], "k is [1, 1]: it has a number twice"),
        (["--temperatures", "[-1]"], "temperatures is [-1.0]"),
        (["--temperatures", "[0]"], "k is above 1 at temperature 0"),
        (["--samples", "0"], "samples is 0: it has to be at least 1"),
        (["--top_p", "2"], "top_p is 2.0: it has to be above 0 and at most 1"),
        (["--select", "fixed", "--k", "[1]"], "give one, or one for each k"),
        (
            ["--select", "fixed", "--temperatures", "[0.2, 0]"],
            "temperatures is [0.2, 0.0], and select fixed takes 0 for k",
        ),
        (["--heads_used", "3"], "heads_used"),
        (["--out", "gsm8k.jsonl"], "out: 'gsm8k.jsonl' is a file"),
        (["--name", "a b"], "name is 'a b': it has to be 1 to 64 letters"),
        (["--max_new_tokens", "0"], "max_new_tokens is 0"),
    ],
)
def test_bad_input(arguments: list[str], says: str, folder: Path, capsys: Capture) -> None:
    checkpoint()
    Path("other.jsonl").write_text(json.dumps({"task_id": "HumanEval/0", "prompt": "def f():"}))
    Path("bad.jsonl").write_text(Path("gsm8k.jsonl").read_text().splitlines()[0] + "\n{'a'}\n")
    Path("empty.jsonl").write_text("\n")
    before = everything(folder)
    assert main(["evaluate", "gsm8k", "a.ckpt", *QUICK, "--json", "out.json", *arguments]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert everything(folder) == before


def test_models_that_cannot_be_asked(folder: Path, capsys: Capture) -> None:
    checkpoint("poly.ckpt", task=Polynomial(modulus=3, degree=1, train_operations=1, test_operations=2))
    checkpoint("short.ckpt", context=64)
    before = everything(folder)
    for ckpt, says in (
        ("poly.ckpt", "'poly.ckpt' holds no tokenizer: it was not trained on text"),
        ("short.ckpt", "gsm8k begins with worked examples of 2141 tokens, and of the 64 tokens that the model was"),
    ):
        assert main(["evaluate", "gsm8k", ckpt, *QUICK]) == 2
        assert says in capsys.readouterr().err
    assert everything(folder) == before


def test_samples_of_another_model_are_refused(capsys: Capture) -> None:
    checkpoint()
    assert main(["evaluate", "gsm8k", "a.ckpt", *QUICK]) == 0
    content = torch.load("a.ckpt", weights_only=True)
    content["state_dict"]["model.norm.weight"] += 1
    torch.save(content, "a.ckpt")
    before = everything(Path("evaluation"))
    capsys.readouterr()
    assert main(["evaluate", "gsm8k", "a.ckpt", *QUICK]) == 2
    assert "was made with model 'crc32:" in capsys.readouterr().err
    assert everything(Path("evaluation")) == before


@pytest.mark.slow
def test_on_a_full_disk_it_says_so_and_goes_on_later(capsys: Capture) -> None:
    checkpoint()
    ask = ["evaluate", "gsm8k", "a.ckpt", *QUICK, "--samples", "12"]
    assert main([*ask, "--out", "whole", "--json", "whole.json"]) == 0
    first = "gsm8k_step_7_temperature_0.2.jsonl"
    assert Path("whole", first).stat().st_size > 1500
    capsys.readouterr()
    with no_file_larger_than(1500):
        assert main([*ask, "--batch_size", "1", "--json", "out.json"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"mtp: error: File too large: evaluation/{first}"
    left = Path("evaluation", first).read_bytes()
    assert left.count(b"\n") > 5
    assert Path("whole", first).read_bytes().startswith(left)
    assert main(ask) == 0
    assert everything(Path("evaluation")) == everything(Path("whole"))
    capsys.readouterr()
    with no_file_larger_than(1500):  # every sample is there; what they come to is not
        assert main([*ask, "--json", "out.json"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "mtp: error: File too large: out.json"
    assert not Path("out.json").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("mlflow_run_id", "garbage"), ("config.yaml", "[" * 5000), ("config.yaml", "a: [unclosed"), ("config.yaml", None)],
)
def test_a_damaged_file_of_the_run_costs_the_record_only(
    tmp_path: Path, name: str, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mlflow_run_id").write_text("a" * 32)
    (tmp_path / name).mkdir() if content is None else (tmp_path / name).write_text(content)
    assert not record(tmp_path, 3, {"eval/x": 1.0})
    assert "warning: not recorded in MLflow: " in capsys.readouterr().err
