"""The proof that prompt, drafts, stop, program, sandbox and score fit together: a model that has learned the solutions
by heart solves every problem, and one that has not solves none."""

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpoints import save
from tiny import tiny_backbone
from torch.nn import functional as F

from mtp_lightning.cli import main
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel

EOS = 255
ROWS = [
    ("add", "def add(a, b):\n", "    return a + b\n", "assert f(1, 2) == 3"),
    ("last", "def last(x):\n", "    return x[-1]\n", "assert f([1, 5]) == 5"),
    ("up", "def up(s):\n", "    return s.upper()\n", "assert f('a') == 'A'"),
    ("neg", "def neg(a):\n", "    if a:\n        return -a\n    return 0\n", "assert f(2) == -2"),
    ("two", "def two():\n", "    return 2\n\n", "assert f() == 2"),
]

pytestmark = pytest.mark.usefixtures("shapes_unchecked")


def humaneval_rows() -> list[dict[str, Any]]:
    return [
        {
            "task_id": f"Own/{name}", "prompt": prompt, "canonical_solution": solution, "entry_point": name,
            "test": f"def check(f):\n    {test}\n",
        }
        for name, prompt, solution, test in ROWS
    ]  # fmt: skip


def overfit(texts: Sequence[str], steps: int, dim: int, n_future: int = 2) -> MTPModel:
    """Every head learns the texts by heart; after each comes the start of another function, then its end."""
    torch.manual_seed(0)
    settings = {"vocab_size": 256, "dim": dim, "ffn_dim": 2 * dim, "n_layers": n_future + 1, "n_heads": 2}
    model = MTPModel(tiny_backbone(**settings), HeadsConfig(n_future=n_future, match="none"))
    ids = [[*f"{text}\ndef".encode(), *[EOS] * n_future] for text in texts]
    longest = max(map(len, ids))
    tokens_BT = torch.tensor([one + [EOS] * (longest - len(one)) for one in ids])
    ignored_BT = torch.tensor([[False] * len(one) + [True] * (longest - len(one)) for one in ids])
    targets_BT = tokens_BT.masked_fill(ignored_BT, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(steps):
        logits_NBTV = model.logits(tokens_BT)
        losses = [
            F.cross_entropy(logits_NBTV[i, :, : -i - 1].flatten(0, 1), targets_BT[:, i + 1 :].flatten())
            for i in range(n_future)
        ]
        optimizer.zero_grad()
        sum(losses).backward()  # type: ignore[union-attr]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def solved(rows: Sequence[dict[str, Any]], model: MTPModel, *flags: str) -> dict[str, Any]:
    save(Path("a.ckpt"), model)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        "evaluate",
        "humaneval",
        "a.ckpt",
        "--data",
        "rows.jsonl",
        "--json",
        "out.json",
        "--max_new_tokens",
        "400",
    ]
    assert main([*command, *flags]) == 0
    found: dict[str, Any] = json.loads(Path("out.json").read_text())
    return found


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_model_that_knows_the_solutions_solves_every_problem() -> None:
    rows = humaneval_rows()
    model = overfit([row["prompt"] + row["canonical_solution"] for row in rows], steps=120, dim=64)
    found = solved(rows, model, "--temperatures", "[0, 0.2]", "--samples", "3", "--k", "[1, 3]", "--heads_used", "2")
    assert found["metrics"]["eval/humaneval/pass_at_1"] == 1
    assert found["scores"]["pass_at_3"] == {"value": 1.0, "temperature": 0.2, "low": 1.0, "high": 1.0}
    assert found["metrics"]["eval/humaneval/tokens_per_forward"] > 1.5
    assert found["temperatures"][0]["verdicts"] == {"passed": 5}
    assert found["temperatures"][0]["ended"] == {"stop": 5}
    lines = [json.loads(line) for line in Path(found["temperatures"][0]["samples"]).read_text().splitlines()]
    assert {row["task_id"]: row["completion"] for row in lines} == {
        row["task_id"]: row["canonical_solution"] for row in rows
    }
    score = ["evaluate", "score", found["temperatures"][0]["samples"], "--task", "humaneval", "--data", "rows.jsonl"]
    assert main([*score, "--json", "score.json"]) == 0
    assert json.loads(Path("score.json").read_text())["metrics"]["pass_at_1"] == 1
    flags = ("--temperatures", "[0]", "--k", "[1]", "--max_new_tokens", "8", "--out", "other")
    other = solved([row | {"canonical_solution": ""} for row in rows], overfit(["x"], 1, 32), *flags)
    assert other["metrics"]["eval/humaneval/pass_at_1"] == 0


@pytest.mark.slow
@pytest.mark.skipif("MTP_DATA_DIR" not in os.environ, reason="needs MTP_DATA_DIR")
def test_five_of_humanevals_own_solutions() -> None:
    with gzip.open(Path(os.environ["MTP_DATA_DIR"]) / "bench/HumanEval.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    rows = sorted(rows, key=lambda row: len(row["prompt"] + row["canonical_solution"]))[:5]
    model = overfit([row["prompt"] + row["canonical_solution"] for row in rows], steps=250, dim=96)
    found = solved(rows, model, "--temperatures", "[0]", "--k", "[1]", "--max_new_tokens", "400")
    assert found["metrics"]["eval/humaneval/pass_at_1"] == 1
    assert found["metrics"]["eval/humaneval/tokens_per_forward"] > 1
