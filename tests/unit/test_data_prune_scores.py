"""Losses that were measured before: the same lists, without the model."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_data_prune_command import columns, prune, work

from mtp_lightning.data.pruning import prune as pruning
from mtp_lightning.errors import InputError

__all__ = ["work"]
pytestmark = pytest.mark.usefixtures("shapes_unchecked")


@pytest.fixture(scope="module")
def before(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("before") / "kept"
    prune(work, out, "loss")
    return Path(f"{out}.parquet")


@pytest.mark.parametrize(("by", "fraction"), [("loss", 0.3), ("loss_head_3", 0.3), ("gap", 0.6)])
def test_a_list_by_losses_measured_before_is_that_of_the_model_to_the_byte(
    work: Path,
    tmp_path: Path,
    before: Path,
    monkeypatch: pytest.MonkeyPatch,
    by: str,
    fraction: float,
) -> None:
    by_model = prune(work, tmp_path / "kept", by, fraction=fraction)
    for path in tmp_path.glob("kept*"):
        path.unlink()
    monkeypatch.setattr(pruning, "load_provider", None)  # nothing asks a model
    assert prune(work, tmp_path / "kept", by, fraction=fraction, ckpt=None, scores=str(before)) == by_model


def test_first_tokens_are_those_that_were_measured(work: Path, tmp_path: Path) -> None:
    prune(work, tmp_path / "a", "loss", first_tokens=9)
    made = prune(work, tmp_path / "b", "loss", ckpt=None, scores=str(tmp_path / "a.parquet"))
    assert made["b"] == (tmp_path / "a").read_bytes()
    assert columns(tmp_path / "b") == columns(tmp_path / "a")


@pytest.mark.parametrize(
    ("by", "changes", "says"),
    [
        ("loss", {"ckpt": "a.ckpt"}, "scores: what was measured before is of its own ckpt: leave --ckpt out"),
        ("loss", {"first_tokens": 9}, "of its own first_tokens: leave --first_tokens out"),
        ("length", {}, "scores: losses are taken from it, and --by length does not go by one"),
        ("scip", {}, "and --by scip does not go by one"),
        ("loss_head_4", {}, "this model has only loss_head_1, loss_head_2, loss_head_3, gap"),
        ("loss", {"scores": "nowhere"}, "scores: there is no file 'nowhere'"),
        ("loss", {"scores": __file__}, "is no Parquet file that can be read"),
        (
            "loss",
            {"split_seed": 1},
            "of 21 documents with validation_fraction 0.25 and split_seed 0",
        ),
        ("loss", {"max_documents": 9}, "it is of another corpus, or of another split, than these 9 with"),
    ],
)
def test_scores_that_do_not_go_with_it(
    work: Path,
    tmp_path: Path,
    before: Path,
    by: str,
    changes: dict[str, Any],
    says: str,
) -> None:
    with pytest.raises(InputError, match=says):
        prune(work, tmp_path / "kept", by, **{"ckpt": None, "scores": str(before)} | changes)
    assert [*tmp_path.iterdir()] == []


def test_files_without_losses(work: Path, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    prune(work, tmp_path / "by_length", "length")
    pyarrow.parquet.write_table(pyarrow.table({"loss_head_1": [1.0]}), tmp_path / "another.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "by_length.parquet")
    header = json.loads(table.schema.metadata[b"mtp_lightning.pruning"])
    newer = table.replace_schema_metadata({"mtp_lightning.pruning": json.dumps(header | {"format": 9})})
    pyarrow.parquet.write_table(newer, tmp_path / "newer.parquet")
    for name, says in (("by_length", "has no losses: it is of --by length"), ("another", "is no file of scores"),
                       ("newer", "it is of another version")):  # fmt: skip
        with pytest.raises(InputError, match=says):
            prune(work, tmp_path / "kept", "loss", ckpt=None, scores=str(tmp_path / f"{name}.parquet"))
