"""`mtp fit` with `model.init` and `model.freeze`: what a run begins with, what it records, and what is no start."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import fit, fit_until, make_folder

from mtp_lightning.checkpoints.files import load_model, save_safetensors
from mtp_lightning.checkpoints.initial import digest_of, parent_name, source_file
from mtp_lightning.data.tokenizers.training import train_bpe
from mtp_lightning.tracking.read import history, read_run
from mtp_lightning.tracking.store import default_tracking_uri

pytestmark = pytest.mark.filterwarnings("ignore:.*the last steps are not validated")
ADDED = ("--model.heads.match=none", "--model.init.path=runs/base", "--model.init.heads=copy")
BASE = ("--model.heads.n_future=1",)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run `runs/base` of n_future = 1."""
    folder = tmp_path_factory.mktemp("initial")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["mtp"])
        make_folder(folder)
        assert fit("runs/base", *BASE) == 0
    return folder


@pytest.fixture(autouse=True)
def folder(base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(base)
    monkeypatch.setattr("sys.argv", ["mtp"])
    return base


def newest(run: str) -> Path:
    return max(Path(run, "checkpoints").glob("*.ckpt"))


def content(run: str) -> dict[str, Any]:
    return torch.load(newest(run), weights_only=True)  # type: ignore[no-any-return]


def record(folder: Path, run: str) -> Any:
    return read_run(default_tracking_uri(folder / "runs"), Path(run, "mlflow_run_id").read_text().strip())


def test_a_frozen_run_begins_with_the_weights_and_leaves_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("runs/frozen", *ADDED, "--model.freeze=next_token") == 0
    assert "model.init: weights of 'runs/base/checkpoints/step-00000006.ckpt'" in capsys.readouterr().err
    there, ours = content("runs/base")["state_dict"], content("runs/frozen")
    assert all(torch.equal(ours["state_dict"][name], weight) for name, weight in there.items())
    trained = [name for name in ours["state_dict"] if name not in there]
    (optimizer,) = ours["optimizer_states"]
    assert len(optimizer["state"]) == len(trained) > 0
    assert ours["mtp_lightning"]["parent"] == {
        "name": "base/step-00000006.ckpt",
        "weights": digest_of(Path("runs/base")),
    }
    tags = record(folder, "runs/frozen").tags
    assert (tags["mtp.parent"], tags["mtp.parent_weights"]) == tuple(ours["mtp_lightning"]["parent"].values())
    metrics = record(folder, "runs/frozen").metrics
    assert metrics["model/parameters_trained"] == sum(ours["state_dict"][name].numel() for name in trained)
    uri, run_id = default_tracking_uri(folder / "runs"), Path("runs/frozen/mlflow_run_id").read_text().strip()
    rates = history(uri, run_id, ["train/lr", "val/loss/head_1"])
    assert [step for step, _ in rates["train/lr"]] == [1, 2, 3, 4, 5, 6]
    assert rates["val/loss/head_1"][0][1] == rates["val/loss/head_1"][1][1]


def test_a_resumed_run_goes_on_from_its_own_checkpoint_without_the_source(folder: Path) -> None:
    Path("runs/base").rename("runs/moved")
    try:
        source = ("--model.init.path=runs/moved", *ADDED[:1], *ADDED[2:])
        assert fit("runs/whole", *source) == 0
        fit_until("runs/parts", 4, *source)
        Path("runs/moved").rename("runs/away")
        assert fit("runs/parts", *source, "--ckpt_path=auto") == 0
        whole, parts = content("runs/whole"), content("runs/parts")
        assert all(torch.equal(parts["state_dict"][n], w) for n, w in whole["state_dict"].items())
        assert parts["mtp_lightning"]["parent"] == whole["mtp_lightning"]["parent"]
    finally:
        Path("runs/away").rename("runs/base")


@pytest.mark.parametrize(("flags", "says"), [
    ((*ADDED[:1], "--ckpt_path=CKPT"), "model.heads.n_future = 1, .* says 2; .* give model.init.path in place of"),
    ((*BASE, "--model.init.path=runs/base", "--ckpt_path=CKPT"), "ckpt_path and model.init.path: .* leave one"),
    ((*BASE, "--model.freeze=trunk", "--ckpt_path=CKPT"), "model.freeze = 'none', and this configuration says 'trunk'"),
    ((*BASE, "--model.init.path=runs/none"), "model.init.path: there is no run, checkpoint or .* 'runs/none'"),
    ((*BASE, f"--model.init.path={'é' * 200}"), "model.init.path: 'é.*': File name too long"),
    ((*BASE, "--model.init.path=small.yaml"), "'small.yaml' is not a checkpoint"),
    (ADDED[1:], "path to the next token has 3 layers in .* and 2 here"),
    ((*BASE, "--model.init.path=runs/base", "--model.backbone.dim=32"), r"\(256, 16\), .* of \(256, 32\); .*dim: 16"),
])  # fmt: skip
def test_what_is_no_start_is_refused_and_nothing_written(
    flags: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = tuple(flag.replace("CKPT", str(newest("runs/base"))) for flag in flags)
    assert fit("runs/refused", *flags) == 2
    assert re.search(says, capsys.readouterr().err)
    assert not Path("runs/refused").exists()


def test_another_tokenizer_of_the_same_size_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load_model(newest("runs/base"))
    save_safetensors(loaded._replace(text_tokenizer=None), Path("silent.safetensors"))
    assert digest_of(Path("silent.safetensors")) == digest_of(Path("runs/base"))
    assert parent_name(Path("silent.safetensors").absolute()) == "silent.safetensors"
    other = loaded.tokenizer.state() | {"name": "other"}
    changed = content("runs/base")
    changed["mtp_lightning"]["tokenizer"] = other
    torch.save(changed, "other.ckpt")
    assert fit("runs/other", *BASE, "--model.init.path=other.ckpt") == 2
    assert "with another tokenizer than this run's, both of 256 tokens" in capsys.readouterr().err
    assert not Path("runs/other").exists()


def test_a_run_begins_with_another_tokenizer(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Head 1's rows come from the source's; without the key it is refused with both ways out."""
    texts = [path.read_text() for path in (base / "corpus").iterdir()]
    (base / "bpe.json").write_text(train_bpe(iter(texts), 270))
    flags = (*BASE, "--data.tokenizer=bpe.json", "--model.backbone.vocab_size=270", "--model.init.path=runs/base")
    assert fit("runs/other", *flags) == 2
    assert "model.init.vocabulary: transfer" in capsys.readouterr().err
    assert fit("runs/other", *flags, "--model.init.vocabulary=transfer", "--model.optimizer.lr=1e-12") == 0
    said = capsys.readouterr().err
    assert re.search(r"model.init: weights of .*; \d+ tokens keep their rows, \d+ are means of their pieces", said)
    source, made = load_model(source_file(Path("runs/base"))), load_model(source_file(Path("runs/other")))
    letters = [source.tokenizer.encode(letter)[0] for letter in "abc"]
    theirs = [made.tokenizer.encode(letter)[0] for letter in "abc"]
    torch.testing.assert_close(
        made.model.embedding.weight[theirs], source.model.embedding.weight[letters], rtol=1e-4, atol=1e-6
    )
    assert fit("runs/none", *BASE, "--model.init.vocabulary=transfer") == 2
    assert "model.init.vocabulary is 'transfer', and model.init.path names no weights" in capsys.readouterr().err
