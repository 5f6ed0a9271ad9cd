"""A grid whose corpus, or whose lists of kept documents, are not made yet: planned with a warning, and not run."""

from pathlib import Path
from typing import Any

import pytest
from test_grid_fakes import CONFIG, ONE, cells_of, grid_file, house, starts
from test_grid_slurm_fakes import FakeSlurm, slurm

from mtp_lightning.config.keys.missing_files import said_of_missing
from mtp_lightning.errors import InputError
from mtp_lightning.grid.commands import Grid
from mtp_lightning.grid.slurm import submit

__all__ = ["house", "slurm"]

pytestmark = pytest.mark.usefixtures("house")
KEEP = "data.init_args.source.keep"
TEXT = ONE.replace("axes:", f"axes:\n  {KEEP}: [null, kept.jsonl, more.jsonl]")


def source(kind: str = "json", path: str | None = "corpus.jsonl", **more: Any) -> dict[str, Any]:
    return {"kind": kind, "path": path, "chat_template": None, "keep": None} | more


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(CONFIG["data"]["init_args"], "source", source())
    grid_file(tmp_path, TEXT)
    return tmp_path


def test_a_plan_names_what_is_not_there_and_a_run_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = (
        "not there: data.source.keep 'kept.jsonl', 'more.jsonl'; data.source.path 'corpus.jsonl': 3 of 3 cells to run "
        "need them; with a list a cell has another signature, as it is of what the list holds"
    )
    for command in (Grid.plan, Grid.status):
        assert command(Grid("grid.yaml")) == 0
        assert f"warning: {said}\n" in capsys.readouterr().err
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError, match=said):
        Grid("grid.yaml").run()
    assert sorted(folder.rglob("*")) == before, "no cell has begun"


def test_what_is_finished_needs_nothing_any_more(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [folder / name for name in ("corpus.jsonl", "kept.jsonl", "more.jsonl")]
    for file in files:
        file.write_text(file.name)
    assert Grid("grid.yaml").plan() == 0
    assert Grid("grid.yaml").run(workers=2) == 0
    cells = cells_of(folder, TEXT)
    files[0].unlink()
    assert Grid("grid.yaml").run() == 0
    assert [starts(cell) for cell in cells] == [1, 1, 1]
    assert "not there" not in capsys.readouterr().err
    files[2].unlink()
    assert Grid("grid.yaml").report() == 0
    assert (
        "not there: data.source.keep 'more.jsonl'; data.source.path 'corpus.jsonl': 1 of 1" in capsys.readouterr().err
    )


def test_slurms_nodes_may_have_a_corpus_and_signatures_are_made_here(
    slurm: FakeSlurm, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "checkout", lambda: None)
    (folder / "kept.jsonl").write_text("a")
    with pytest.raises(InputError, match=r"not there: data.source.keep 'more.jsonl': 1 of 3 cells"):
        Grid("grid.yaml").submit()
    assert not (folder / "runs").exists()
    (folder / "more.jsonl").write_text("b")
    assert Grid("grid.yaml").submit() == 0


def test_every_source_is_looked_at_and_what_is_no_file_is_not(folder: Path) -> None:
    (folder / "texts").mkdir()
    (folder / "texts" / "one[1].txt").write_text("x")
    there = [source("hub", "org/name"), source("stories", None), source("text", "texts"), source("text", "tex*/*.txt"),
             source("text", "texts/one[1].txt"), {"kind": "json", "path": "of a class of one's own"}]  # fmt: skip
    for one in there:
        assert said_of_missing([{"data": {"source": one}}, {}]) == ""
    for one, name in (
        (source("text", "texts/*.md"), "path 'texts/*.md'"),
        (source("shards", "shards"), "path 'shards'"),
        (source("pairs", "texts", chat_template="x.jinja"), "chat_template 'x.jinja'"),
        (source("stories", None, keep="k"), "keep 'k'"),
    ):
        mixture = {"data": {"init_args": {"source": source("stories"), "mixture": [{"source": one}]}}}
        assert said_of_missing([mixture, {}]).startswith(f"not there: data.source.{name}: 1 of 2 cells")
