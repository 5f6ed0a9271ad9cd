"""Training and evaluation on pairs: commands, ranks, scores on answers alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import fit, make_folder
from test_checkpoints import save
from test_data_pairs import file, module, stored
from tiny import tiny_backbone

from mtp_lightning.checkpoints.files import load_model
from mtp_lightning.checkpoints.select import find_checkpoint
from mtp_lightning.cli import main
from mtp_lightning.data import SourceConfig, TokenDataModule
from mtp_lightning.data.command import prepare_command
from mtp_lightning.data.loader import TrainingWindows
from mtp_lightning.data.tokens.heldout import heldout_pairs
from mtp_lightning.data.tokens.store import read_meta
from mtp_lightning.errors import InputError
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.probes.exact_match import written

__all__ = ["file"]


def test_the_command_makes_shards_that_are_trained_on(file: Path, tmp_path: Path) -> None:
    prepare_command(out=str(tmp_path / "out"), kind="pairs", path=str(file), validation_fraction=0.2)
    assert read_meta(tmp_path / "out").answers
    source = SourceConfig(kind="shards", path=str(tmp_path / "out"))
    data = TokenDataModule(source=source, context=40, batch_size=2)
    data.prepare_data()
    data.setup("fit")
    direct = module(file, batch_size=2)
    a, b = (d._reader()(np.arange(5)) for d in (data, direct))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_two_ranks_share_the_windows_of_one(file: Path) -> None:
    """Row by row, so that their means over what counts are one's."""
    reader = module(file)._reader()
    for index in (0, 3):
        whole, *halves = (TrainingWindows(reader, 4, rank, of)[index] for rank, of in ((0, 1), (0, 2), (1, 2)))
        for key, rows in whole.items():
            assert torch.equal(rows[0::2], halves[0][key])
            assert torch.equal(rows[1::2], halves[1][key])
        assert whole["loss_mask"].any(dim=1).all()


@pytest.mark.slow
def test_a_shipped_configuration_trains_on_pairs_of_stories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path)
    sizes = ("--data.source.max_documents=200", "--data.context=1000", "--data.batch_size=2", "--data.val_windows=4")
    short = (
        "--model.schedule.warmup_steps=1",
        "--trainer.max_steps=2",
        "--trainer.val_check_interval=2",
        "--trainer.logger=false",
    )
    unset = ("--data.source.path=null",)
    assert fit("run", "-c", "conf/data/story_pairs.yaml", *unset, *sizes, *short) == 0
    assert json.loads((tmp_path / "run/result.json").read_text())["step"] == 2


def test_a_run_is_scored_on_answers_alone(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bits per byte and loss of `mtp fit` against a loop over the pairs, one at a time, without any packing."""
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path)
    source = ["--data.source", f"{{kind: pairs, path: {file}}}", "--data.context=60", "--data.val_windows=null"]
    metrics = tmp_path / "m.json"
    assert fit("run", *source, "--model.backbone.attend_across_documents=false") == 0
    assert main(["validate", "run", "--json", str(metrics)]) == 0, capsys.readouterr().err
    loaded = load_model(find_checkpoint(tmp_path / "run"))
    found = json.loads(metrics.read_text())["metrics"]
    data = module(file, validation_fraction=0.3)
    nll, n_tokens, n_bytes = 0.0, 0, 0
    with torch.no_grad():
        for question, answer in stored(data.validation_store):
            ids = torch.tensor([*question.encode(), *answer.encode(), 255])
            logits = loaded.model.unembedding(loaded.model.next_token_states(ids[None, :-1]))[0]
            nlls = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")[len(question.encode()) - 1 :]
            nll, n_tokens, n_bytes = nll + nlls.sum().item(), n_tokens + len(nlls), n_bytes + len(answer.encode())
    assert found["val/loss/head_1"] == pytest.approx(nll / n_tokens, rel=1e-5)
    assert found["val/bits_per_byte"] == pytest.approx(nll / n_bytes / np.log(2), rel=1e-5)


def test_whole_answers_and_their_loss(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`mtp evaluate pairs`, against decoding one question after the other."""
    data = module(file)
    torch.manual_seed(0)
    model = MTPModel(tiny_backbone(vocab_size=256, n_layers=3), HeadsConfig(n_future=2)).eval()
    save(tmp_path / "a.ckpt", model)
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    content["mtp_lightning"]["context"] = 40
    torch.save(content, tmp_path / "a.ckpt")
    examples = heldout_pairs(data.validation_store, 5, 40)
    assert examples.lengths.tolist() == [len(q) + len(a) + 1 for q, a in stored(data.validation_store)[:5]]
    said = written(model, examples)
    right = [tokens == [*answer.encode(), 255] for tokens, (_, answer) in zip(said, stored(data.validation_store))]
    arguments = ["evaluate", "pairs", str(tmp_path / "a.ckpt"), "--shards", str(data.shards), "--count", "5"]
    assert main([*arguments, "--json", str(tmp_path / "out.json")]) == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "out.json").read_text())["metrics"]
    assert found["exact"] == sum(right) / 5
    losses = []
    for question, answer in stored(data.validation_store)[:5]:
        ids = torch.tensor([*question.encode(), *answer.encode(), 255])
        logits = model.unembedding(model.next_token_states(ids[None, :-1]))[0].log_softmax(-1)
        losses += [-logits[i - 1, ids[i]].item() for i in range(len(question.encode()), len(ids))]
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert main(["evaluate", "pairs", str(tmp_path / "a.ckpt")]) == 2
    with pytest.raises(InputError, match=r"no pair of the validation split .* fits into 3 tokens"):
        heldout_pairs(data.validation_store, 5, 3)
