"""A benchmark asked at the end of training, as `mtp evaluate` asks it; what cannot be asked is refused before."""

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from test_evaluation_overfitted import humaneval_rows
from tiny import Recorder, tiny_backbone
from typing_extensions import override

from callbacks.evaluation import EvaluationProbe
from mtp_lightning.data.datamodule import MTPDataModule
from mtp_lightning.data.loader import BatchLoader, ResumableLoader
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer
from mtp_lightning.errors import InputError
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.module import MTPModule


class Text(MTPDataModule):
    """Windows of one byte text."""

    tokenizer = ByteTokenizer()
    context = 64
    token_bytes = torch.ones(256, dtype=torch.long)  # type: ignore[assignment]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"tokens": (torch.arange(64 + self.horizon) + index).repeat(2, 1) % 256}

    @override
    def train_dataloader(self) -> ResumableLoader:
        return self.training_loader(self)

    @override
    def val_dataloader(self) -> BatchLoader:
        return BatchLoader(self, 1)


def train(folder: Path, probes: list[pl.Callback], data: MTPDataModule | None = None) -> tuple[Recorder, MTPModule]:
    pl.seed_everything(0, verbose=False)
    module = MTPModule(tiny_backbone(vocab_size=256, n_layers=3), HeadsConfig(n_future=2))
    recorder = Recorder()
    trainer = pl.Trainer(
        max_steps=4, accelerator="cpu", logger=recorder, callbacks=probes, default_root_dir=folder,
        val_check_interval=2, check_val_every_n_epoch=None, num_sanity_val_steps=0, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, log_every_n_steps=2,
    )  # fmt: skip
    trainer.fit(module, datamodule=data or Text(vocab_size=256))
    return recorder, module


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in humaneval_rows()))
    return path


def probe(rows: Path, **settings: Any) -> EvaluationProbe:
    return EvaluationProbe(**{"task": "humaneval", "data": str(rows), "limit": 2, "max_new_tokens": 8} | settings)


def test_a_benchmark_is_asked_and_training_does_not_notice(rows: Path, tmp_path: Path) -> None:
    _, plain = train(tmp_path / "plain", [])
    run = tmp_path / "run"
    of_the_command = run / "evaluation/humaneval_step_4_temperature_0.jsonl"
    of_the_command.parent.mkdir(parents=True)
    of_the_command.write_text("kept")
    asked = [probe(rows), probe(rows, when=2, samples=2, temperatures=(0.5,), k=(1, 2), task="humaneval", limit=1)]
    asked[1].name = "often"
    with pytest.raises(RuntimeError, match="more than one stateful callback"):
        train(run, list(asked))
    recorder, probed = train(run, [probe(rows)])
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), probed.parameters()))
    assert recorder.steps("eval/humaneval/pass_at_1") == [4], "the end alone"
    assert {"eval/humaneval/temperature_at_1", "eval/humaneval/tokens_per_forward"} <= recorder.last.keys()
    assert "perf/probe/evaluation_humaneval/seconds" in recorder.last
    assert of_the_command.read_text() == "kept"
    assert len((run / "evaluation/probe/humaneval_step_4_temperature_0.jsonl").read_text().splitlines()) == 2
    named = probe(rows, name="again", limit=1)
    begun = Text(vocab_size=256)
    begun.begin_ids = [7]  # type: ignore[attr-defined]  # as data of pairs with Llama's tokenizer
    recorder, _ = train(run, [asked[1], named], begun)
    assert recorder.steps("eval/humaneval-again/pass_at_1") == [4]
    assert len((run / "evaluation/probe/humaneval-again_step_4_temperature_0.jsonl").read_text().splitlines()) == 1
    assert "perf/probe/evaluation_humaneval-again/seconds" in recorder.last
    assert recorder.steps("eval/humaneval/pass_at_2") == [0, 2, 4]
    side = json.loads((run / "evaluation/probe/humaneval_step_4_temperature_0.5.made_with.json").read_text())
    assert side["made_with"]["begin_ids"] == [7]


def test_what_cannot_be_asked_is_refused_before_training(rows: Path, tmp_path: Path) -> None:
    class Numbers(Text):
        tokenizer = None  # type: ignore[assignment]

    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"question": "?", "answer": "#### 1"}))
    for settings, data, says in (
        ({"data": str(other)}, None, "EvaluationProbe.data.* a row of HumanEval has 'task_id'"),
        ({"data": str(tmp_path / "none")}, None, "EvaluationProbe.data: cannot read"),
        ({"max_new_tokens": 64}, None, "EvaluationProbe.max_new_tokens is 64, .*trained on windows of 64 tokens"),
        ({"task": "gsm8k", "data": str(other)}, None, "gsm8k begins with worked examples of 2141 tokens"),
        ({}, Numbers(vocab_size=256), "EvaluationProbe.task is humaneval: the run is not trained on text"),
    ):
        with pytest.raises(InputError, match=says):
            train(tmp_path / "run", [probe(rows, **settings)], data)
    again = tmp_path / "again.jsonl"
    again.write_text(rows.read_text())
    with pytest.raises(
        InputError, match=r"EvaluationProbe.name is None: another callback asks humaneval under the same"
    ):
        train(tmp_path / "run", [probe(rows), probe(again)])
    assert not (tmp_path / "run/evaluation").exists()
    for settings, says in (
        ({"name": "a/b"}, "EvaluationProbe.name is 'a/b': it has to be 1 to 64 letters"),
        ({"k": (2,)}, "EvaluationProbe.k is 2, and pass@k needs"),
        ({"samples": 2, "k": (2,)}, "EvaluationProbe.k is above 1 at temperature 0"),
        ({"temperatures": (0.5, 0.5)}, r"EvaluationProbe.temperatures is \[0.5, 0.5\]: it has a number twice"),
    ):
        with pytest.raises(InputError, match=says):
            probe(rows, **settings)
