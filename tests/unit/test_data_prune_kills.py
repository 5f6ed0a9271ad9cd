"""`mtp data prune` in processes that have imported nothing."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_checkpoints import save
from test_data_prune_command import work
from tiny import tiny_backbone

from mtp_lightning.cli import main
from mtp_lightning.config.cell import fit_command
from mtp_lightning.data.preparing import pieces
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.own_code import import_own

__all__ = ["work"]

pytestmark = pytest.mark.usefixtures("shapes_unchecked")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint with heads of a module `theirs`, which nobody has imported."""
    (tmp_path / "theirs.py").write_text("from my_heads import Gated\n")
    monkeypatch.syspath_prepend(tmp_path)
    import_own("theirs")
    heads = HeadsConfig(n_future=2, kind="theirs.Gated")
    path = save(tmp_path / "own.ckpt", MTPModel(tiny_backbone(vocab_size=256, n_layers=4), heads))
    del sys.modules["theirs"]
    return path


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_workers_import_what_the_command_was_given(
    own: Path, work: Path, monkeypatch: pytest.MonkeyPatch, real: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def begin(job: pieces.Job) -> None:
        sys.modules.pop("theirs", None)  # as in a process of its own
        pieces._begin(job)

    if not real:
        monkeypatch.setattr(pieces, "_pool", lambda n, job: ThreadPoolExecutor(n, "", begin, (job,)))
    words = ["data", "prune", "--by", "loss_head_2", "--fraction", "0.3", "--ckpt", str(own), "--kind", "text"]
    words += ["--path", str(work / "corpus"), "--glob", "**/*.py", "--workers", "2", "--out", str(own.parent / "kept")]
    assert main(words) == 2
    assert "add `--import theirs`" in capsys.readouterr().err
    assert main([*words, "--import", "theirs"]) == 0, capsys.readouterr().err
    assert (own.parent / "kept").is_file()


def test_cells_are_given_what_the_grid_was_given(own: Path) -> None:
    """They may begin with the weights of a checkpoint that has such heads."""
    assert main(["--version", "--import", "theirs"]) == 0
    assert fit_command(Path("config.yaml"))[2:] == ["mtp_lightning", "fit", "-c", "config.yaml", "--import=theirs"]
    assert main(["--version"]) == 0
    assert fit_command(Path("config.yaml"))[-1] == "config.yaml"
