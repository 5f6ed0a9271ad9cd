"""A chain of three in one grid file: pretrained, fine-tuned, then heads added to a model that stays as it is."""

import json
from pathlib import Path

import pytest
import torch
from processes import Mtp

CHAIN = """
name: chain
configs: [conf/base.yaml, tiny.yaml]
overrides: {trainer.max_steps: 6, model.heads.match: none}
compare: [val/loss/head_1]
stages:
  - name: pretrain
  - name: finetune
    from: pretrain
    overrides: {model.optimizer.lr: 1.0e-3, model.backbone.rope_theta: 50000, data.init_args.context: 32}
  - name: heads
    from: finetune
    overrides: {model.heads.n_future: 2, model.freeze: next_token, model.backbone.rope_theta: 50000}
    axes: {model.init.heads: [copy]}
"""


def newest(folder: Path, signature: str) -> dict[str, torch.Tensor]:
    content = torch.load(max((folder / "runs" / signature / "checkpoints").glob("*.ckpt")), weights_only=True)
    return {**content["state_dict"], "parent": content["mtp_lightning"]["parent"]}


@pytest.mark.slow
def test_a_chain_is_planned_run_and_reported_with_its_parents(mtp: Mtp, folder: Path) -> None:
    (folder / "grid.yaml").write_text(CHAIN)
    planned = mtp("grid", "plan", "grid.yaml", "--json", "plan.json")
    assert "run after its parent" in planned.stdout
    rows = {row["label"]: row for row in json.loads((folder / "plan.json").read_text())["cells"]}
    assert list(rows) == ["pretrain", "finetune", "heads"]
    first, second, third = (row["signature"] for row in rows.values())
    assert [row["parent"] for row in rows.values()] == [None, first, second]

    ran = mtp("grid", "run", "grid.yaml", "--json", "report.json")
    report = json.loads((folder / "report.json").read_text())
    assert [stage["grid"] for stage in report["stages"]] == ["chain.pretrain", "chain.finetune", "chain.heads"]
    assert report["stages"][2]["groups"][0]["parent"] == "finetune"
    assert "begun with the weights of finetune, by seed" in ran.stdout

    tuned, added = newest(folder, second), newest(folder, third)
    assert added["parent"]["name"] == second
    assert tuned["parent"]["name"] == first
    assert all(torch.equal(added[name], weight) for name, weight in tuned.items() if name != "parent")
    assert "heads.1." in "".join(added)
    assert (folder / "runs/reports/chain.heads/report.html").is_file()
    assert "all 3 cells are finished" in mtp("grid", "run", "grid.yaml").stderr
