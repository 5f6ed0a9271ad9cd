"""Pruning as commands: what is measured, what is kept, and runs that read the list."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from test_checkpoints import save
from tiny import tiny_backbone

from mtp_lightning.checkpoints.files import load_model
from mtp_lightning.cli import main
from mtp_lightning.data import SourceConfig, TokenDataModule
from mtp_lightning.data.corpora.documents import documents
from mtp_lightning.data.corpora.kept import read_kept
from mtp_lightning.data.mixtures.sources import MixtureSource
from mtp_lightning.data.preparing import pieces
from mtp_lightning.data.preparing.chunks import split_position
from mtp_lightning.data.pruning import commands, gate, measuring, score_files
from mtp_lightning.data.pruning.commands import prune_command
from mtp_lightning.data.pruning.corruption_commands import corruptions_command
from mtp_lightning.data.pruning.survey import survey
from mtp_lightning.data.tokens.prepare import ShardSettings, cache_name, prepare_source
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer
from mtp_lightning.errors import InputError
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel

CONTEXT, FRACTION = 24, 0.25
COUNT = 20


pytestmark = pytest.mark.usefixtures("shapes_unchecked")
"""But for the tests of the table and of what is planted, which go through the same functions."""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of bytes with three heads, and a corpus of small modules."""
    folder = tmp_path_factory.mktemp("pruned")
    torch.manual_seed(0)
    path = save(folder / "a.ckpt", MTPModel(tiny_backbone(vocab_size=256, n_layers=4), HeadsConfig(n_future=3)))
    content = torch.load(path, weights_only=True)
    content["mtp_lightning"]["context"] = CONTEXT
    torch.save(content, path)
    (folder / "corpus" / "inner").mkdir(parents=True)
    for i in range(COUNT):
        text = f"def é{i}(x):\n    return [x + {i}] if x == {i % 3} else x[0]\n" * (1 + i * 5 % 4)
        (folder / "corpus" / ("inner" if i % 2 else "") / f"{i}.py").write_text(text)
    (folder / "corpus" / "short.py").write_text("x")
    return folder


def source_of(work: Path, **more: Any) -> SourceConfig:
    return SourceConfig("text", str(work / "corpus"), glob="**/*.py", **more)


def prune(work: Path, out: Path, by: str, **changes: Any) -> dict[str, bytes]:
    """Name -> content of what was made."""
    settings = {"fraction": 0.3, "kind": "text", "path": str(work / "corpus"), "glob": "**/*.py"}
    settings |= {"validation_fraction": FRACTION, "gate_documents": 4, "force": by == "scip"}
    settings |= {"clusters": 4} if by in ("scip", "prototypes") else {}
    settings |= {} if by in ("length", "random") else {"ckpt": str(work / "a.ckpt")}
    prune_command(by, out=str(out), **settings | changes)
    return {path.name: path.read_bytes() for path in out.parent.glob(f"{out.name}*")}


def columns(out: Path) -> dict[str, Any]:
    return dict(pyarrow.parquet.read_table(f"{out}.parquet").to_pydict())


def brute_force(model: MTPModel, text: str) -> tuple[list[float], np.ndarray]:
    """(nats per token of each head, the mean state) of a document: position by position, all of its windows anew."""
    tokens, losses, states = [*text.encode(), 255], [[], [], []], []  # type: ignore[var-annotated]
    for start in range(0, len(tokens), CONTEXT):
        part = torch.tensor(tokens[start : start + CONTEXT])[None]
        with torch.no_grad():
            states.append(model.run_trunk(part, model.rotary(torch.arange(part.shape[1])))[0])
            logits = model.logits(part)[:, 0].double().log_softmax(-1)
        for i, of_head in enumerate(losses):
            for t in range(part.shape[1]):
                if start + t + i + 1 < len(tokens):
                    of_head.append(-float(logits[i, t, tokens[start + t + i + 1]]))
    return [float(np.mean(one)) if one else np.nan for one in losses], torch.cat(states).mean(0).numpy()


def test_scores_of_100_documents_are_those_of_a_computation_by_brute_force(work: Path, tmp_path: Path) -> None:
    """Losses, their gap, sizes, and the distance to the nearest centroid, of every training document."""
    texts = [f"def f{i}(x):\n    return x[{i * i}] + {i % 7}\n"[: 5 + i * 37 % 60] * (1 + i % 3) for i in range(99)]
    corpus = sized(tmp_path, *[1] * 100)
    trained = sorted(path for path in corpus.iterdir() if path.read_text() != "validation")
    for path, text in zip(trained[1:], texts):
        path.write_text(text)
    names = [path.name for path in trained]  # the first has no target for head 2, others none for head 3
    settings: dict[str, Any] = {"path": str(corpus), "validation_fraction": 1e-6}
    prune(work, tmp_path / "losses", "loss_head_2", **settings)
    prune(work, tmp_path / "places", "scip", **settings, clusters=5)
    model = load_model(work / "a.ckpt").model
    by_hand = [brute_force(model, path.read_text()) for path in trained]
    assert len(by_hand) == 100

    def column(file: str, name: str) -> np.ndarray:
        found = columns(tmp_path / file)
        values = dict(zip(found["name"], found[name]))
        assert values.pop((set(values) - {*names}).pop()) in (None, len("validation"))
        return np.array([values[name] for name in names], dtype=float)

    losses = np.array([losses for losses, _ in by_hand])
    assert np.isnan(losses).any(0).tolist() == [False, True, True]
    for i in range(3):
        np.testing.assert_allclose(column("losses", f"loss_head_{i + 1}"), losses[:, i], atol=1e-5)
    np.testing.assert_allclose(column("losses", "gap"), losses[:, 2] - losses[:, 0], atol=1e-5)
    assert (column("losses", "bytes") == [path.stat().st_size for path in trained]).all()
    x = np.array([state / np.linalg.norm(state) for _, state in by_hand], dtype=float)
    cluster = column("places", "cluster").astype(int)
    sums = np.array([x[cluster == k].sum(0) for k in range(5)])
    cosines = x @ (sums / np.linalg.norm(sums, axis=1, keepdims=True)).T
    assert (cosines.argmax(1) == cluster).all()
    np.testing.assert_allclose(column("places", "distance"), 1 - cosines.max(1), atol=1e-6)
    assert (column("places", "cluster_size") == np.bincount(cluster)[cluster]).all()


def sized(folder: Path, *sizes: int) -> Path:
    """A corpus of which these are the training documents, in the order of their names."""
    names = [f"{i}.py" for i in range(len(sizes) + 1)]
    validates = min(names, key=lambda name: split_position(name, 0))
    (folder / "sized").mkdir()
    for name, size in zip([name for name in names if name != validates], sizes):
        (folder / "sized" / name).write_text("x" * size)
    (folder / "sized" / validates).write_text("validation")
    return folder / "sized"


def test_the_part_that_is_left_out_is_said_and_never_nothing(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus: dict[str, Any] = {"path": str(sized(tmp_path, 100, 30, 30, 20, 20)), "validation_fraction": 1e-6}
    with pytest.raises(InputError, match=r"fraction is 0.2: nothing would be left out, as the first to go is at least"):
        prune(work, tmp_path / "a", "length", **corpus, fraction=0.2)
    with pytest.raises(InputError, match=r"fraction is 0.1: nothing .* take a larger fraction$"):
        prune(work, tmp_path / "a", "length", **corpus, fraction=0.1, of="documents")
    assert [path.name for path in tmp_path.iterdir()] == ["sized"]
    prune(work, tmp_path / "a", "length", **corpus, fraction=0.3)
    assert (
        "warning: fraction is 0.3, and 0.5 of the bytes are left out as high length, for 0.3" in capsys.readouterr().err
    )
    metadata = pyarrow.parquet.read_schema(f"{tmp_path / 'a'}.parquet").metadata[b"mtp_lightning.pruning"]
    for made_by in (read_kept(str(tmp_path / "a")).header.made_by, json.loads(metadata)["made_by"]):
        assert made_by["left_out"] == {"high length": 0.5}
    prune(work, tmp_path / "b", "length", **corpus, fraction=0.45)
    assert "warning" not in capsys.readouterr().err, "0.5 is as near as a ninth"


def test_a_part_of_scip_that_is_missing_is_said(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prune(work, tmp_path / "kept", "scip", fraction=0.3, alpha=0.97, of="documents")
    assert read_kept(str(tmp_path / "kept")).header.made_by["left_out"]["far from its centroid"] == 0
    assert "and 0 of the documents are left out as far from its centroid, for 0.009" in capsys.readouterr().err


def test_what_has_no_score_is_not_left_out_for_it(work: Path, tmp_path: Path) -> None:
    corpus: dict[str, Any] = {
        "path": str(sized(tmp_path, 2, 2, 2, 40, 40)),
        "validation_fraction": 1e-6,
        "of": "documents",
    }
    with pytest.raises(InputError, match=r"2 of the documents .* are too short to have a score loss_head_3"):
        prune(work, tmp_path / "kept", "loss_head_3", **corpus, fraction=0.8)
    assert not [*tmp_path.glob("kept*")]
    prune(work, tmp_path / "kept", "loss_head_3", **corpus, fraction=0.4)


def test_first_tokens_are_a_document_cut_off(work: Path) -> None:
    long = next(document for document in documents(source_of(work)) if len(document.text) > 150)
    cut = measuring.load_provider(str(work / "a.ckpt"), first_tokens=30)
    losses, state = brute_force(
        load_model(work / "a.ckpt").model, long.text.encode()[:29].decode()
    )  # its end is a token of 255, this one's a byte
    assert cut.embed([long])[0].shape == state.shape
    whole = measuring.load_provider(str(work / "a.ckpt"))
    assert abs(cut.losses([long])[0, 0] - losses[0]) < 0.2
    assert cut.fingerprint != whole.fingerprint
    same = long._replace(text=long.text + "more")
    assert (cut.losses([long]) == cut.losses([same])).all()
    assert (whole.losses([long]) != whole.losses([same])).all()


@pytest.mark.parametrize(
    ("by", "of"),
    [("length", "bytes"), ("length", "documents"), ("random", "bytes"), ("loss", "bytes"), ("gap", "documents"),
     ("scip", "bytes"), ("prototypes", "documents")],
)  # fmt: skip
def test_what_is_left_out_is_what_the_scores_say(work: Path, tmp_path: Path, by: str, of: str) -> None:
    prune(work, tmp_path / "kept", by, of=of)
    found, kept = columns(tmp_path / "kept"), read_kept(str(tmp_path / "kept"))
    names = np.array(found["name"])
    assert set(names[found["kept"]]) == kept.names
    expected = {name for name in names if split_position(name, 0) < FRACTION}
    assert {name for name, reason in zip(names, found["reason"]) if reason == "validation"} == expected <= kept.names
    trained = np.array([reason != "validation" for reason in found["reason"]])
    out = ~np.array(found["kept"])
    sizes = np.array(found["bytes"]) if of == "bytes" else np.ones(len(names))
    assert abs(sizes[out].sum() / sizes[trained].sum() - 0.3) < 0.12
    assert kept.header.documents == COUNT + 1
    assert kept.header.made_by["by"] == by
    if by == "scip":
        assert set(found["reason"]) <= {"", "validation", "small cluster", "far from its centroid"}
        assert kept.header.made_by["gate"]["forced"]
        assert len(kept.header.made_by["gate"]["rows"]) == 2 * 5
        return
    column = {"loss": "loss_head_1", "prototypes": "distance"}.get(by, by)
    sign = -1 if by == "prototypes" else 1
    scores = sign * np.array([np.nan if value is None else value for value in found[column]])
    assert np.nanmin(scores[out]) >= np.nanmax(scores[trained & ~out])


@pytest.mark.parametrize("by", ["loss", pytest.param("scip", marks=pytest.mark.slow)])
def test_bytes_do_not_depend_on_workers_pieces_and_kills(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], by: str
) -> None:
    whole = prune(work, tmp_path / "kept", by)
    monkeypatch.setattr(score_files, "CHARACTERS", 400)
    for path in tmp_path.glob("kept*"):
        path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(pieces, "_write", dying_after(2))
        with pytest.raises(KeyboardInterrupt):
            prune(work, tmp_path / "kept", by)
    assert [path.name for path in tmp_path.iterdir()] == [".kept.partial"]
    capsys.readouterr()
    assert prune(work, tmp_path / "kept", by) == whole
    assert "documents had been measured before" in capsys.readouterr().err
    for path in tmp_path.glob("kept*"):
        path.unlink()
    monkeypatch.setattr(pieces, "_pool", lambda n, job: ThreadPoolExecutor(n, "", pieces._begin, (job,)))
    assert prune(work, tmp_path / "kept", by, workers=3) == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "kept.parquet"]


def dying_after(count: int) -> Callable[..., None]:
    real, calls = pieces._write, []

    def write(*args: Any) -> None:
        calls.append(args)
        if len(calls) > count:
            raise KeyboardInterrupt
        real(*args)

    return write


def test_what_was_measured_otherwise_is_measured_again(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_files, "CHARACTERS", 400)
    with monkeypatch.context() as patch:
        patch.setattr(pieces, "_write", dying_after(2))
        with pytest.raises(KeyboardInterrupt):
            prune(work, tmp_path / "kept", "loss", first_tokens=9)
    prune(work, tmp_path / "kept", "loss")
    prune(work, tmp_path / "anew", "loss")
    assert columns(tmp_path / "kept") == columns(tmp_path / "anew")


@pytest.mark.parametrize("change", [lambda names: names.pop(), lambda names: names.append("more.py")])
def test_a_corpus_that_changes_while_it_is_read(work: Path, change: Callable[[list[str]], None]) -> None:
    known = survey(source_of(work), ShardSettings(FRACTION, 0))
    names = [*known.names]
    change(names)
    trains = np.resize(known.trains, len(names))
    with pytest.raises(InputError, match="the corpus has changed while it was read"):
        list(replace(known, names=names, trains=trains).training())


def test_a_list_that_cannot_be_written_leaves_no_record(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> list[str]:
        raise InputError("cannot write: no space left")

    with monkeypatch.context() as patch:
        patch.setattr(commands, "kept_lines", full)
        with pytest.raises(InputError, match="no space left"):
            prune(work, tmp_path / "kept", "length")
    assert not [*tmp_path.glob("kept*")]
    assert prune(work, tmp_path / "kept", "length").keys() == {"kept", "kept.parquet"}


def test_what_a_worker_cannot_begin_with_is_said(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a checkpoint that is another one by now: not as if the worker had been killed."""
    monkeypatch.setattr(pieces, "_pool", lambda n, job: ThreadPoolExecutor(n, "", pieces._begin, (job,)))
    monkeypatch.setattr(pieces, "_work", None)
    real, loads = score_files.load_provider, []
    monkeypatch.setattr(score_files, "load_provider", lambda *args: loads.append(args) or real(args[0], 3))
    with pytest.raises(InputError, match="has changed since the command began"):
        prune(work, tmp_path / "kept", "loss", workers=2)
    assert str(loads[0][0]) == str(work / "a.ckpt")


def test_a_worker_that_is_killed_is_said(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise BrokenProcessPool

    monkeypatch.setattr(pieces, "_pool", lambda n, job: ThreadPoolExecutor(n))
    monkeypatch.setattr(pieces, "_write_there", killed)
    with pytest.raises(InputError, match="workers is 2: one of these processes was killed"):
        prune(work, tmp_path / "kept", "loss", workers=2)
    assert not [*tmp_path.glob("kept*")]


@pytest.mark.slow
def test_real_workers(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = prune(work, tmp_path / "loss", "loss")
    monkeypatch.setattr(score_files, "CHARACTERS", 400)
    (tmp_path / "two").mkdir()
    assert prune(work, tmp_path / "two" / "loss", "loss", workers=2) == one


def test_a_run_reads_the_rest_and_validates_on_the_same(work: Path, tmp_path: Path) -> None:
    prune(work, tmp_path / "kept", "length")
    settings = ShardSettings(validation_fraction=FRACTION)
    whole, part = source_of(work), source_of(work, keep=str(tmp_path / "kept"))
    kept = read_kept(str(tmp_path / "kept"))
    assert [one for one in documents(whole) if one.name in kept.names] == [*documents(part)]
    metas = [
        prepare_source(tmp_path / f"{i}", one, ByteTokenizer(), settings).splits for i, one in enumerate((whole, part))
    ]
    assert metas[0]["validation"] == metas[1]["validation"]
    assert metas[1]["train"].n_documents == metas[0]["train"].n_documents - (COUNT + 1 - len(kept.names))
    files = [(tmp_path / i / "validation-00000.bin").read_bytes() for i in "01"]
    assert files[0] == files[1]
    names = {cache_name(one, ByteTokenizer(), settings) for one in (whole, part)}
    header = (tmp_path / "kept").read_text()
    (tmp_path / "other").write_text(header.replace('"by": "length"', '"by": "longer"'))
    names.add(cache_name(source_of(work, keep=str(tmp_path / "other")), ByteTokenizer(), settings))
    assert len(names) == 3, "the list is a part of the shards' key"
    data = TokenDataModule(mixture=[MixtureSource(part)], context=8, batch_size=2, directory=str(tmp_path / "data"),
                           validation_fraction=FRACTION)  # fmt: skip
    data.prepare_data()
    data.setup("fit")
    assert data.corpora[0].train.split_meta.n_documents == metas[1]["train"].n_documents


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: (folder / "corpus" / "new.py").write_text("y = 1"), "was made for another corpus, of 21 doc"),
        (lambda folder: (folder / "corpus" / "2.py").write_text("y = 1"), "or their text has changed"),
        (lambda folder: (folder / "corpus" / "2.py").unlink(), "this one has 20, "),
    ],
)
def test_a_list_of_another_corpus_is_refused(
    work: Path, tmp_path: Path, change: Callable[[Path], None], says: str
) -> None:
    prune(work, tmp_path / "kept", "random")
    (tmp_path / "corpus").symlink_to(work / "corpus")
    assert [*documents(source_of(tmp_path, keep=str(tmp_path / "kept")))], "it may lie elsewhere"
    (tmp_path / "corpus").unlink()
    for file in (work / "corpus").rglob("*.py"):
        copy = tmp_path / file.relative_to(work)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    change(tmp_path)
    with pytest.raises(InputError, match=rf"data\.source\.keep: '.*kept' .*{says}"):
        prepare_source(tmp_path / "shards", source_of(tmp_path, keep=str(tmp_path / "kept")), ByteTokenizer(),
                       ShardSettings(FRACTION))  # fmt: skip
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no file"),
        ("", "empty"),
        ('"a"\n', "no list of documents"),
        ('{"format": 2}\n', "no list of documents"),
        ('{"format": 1}\n', "has no 'corpus'"),
        ('{"format": 1, "corpus": "a", "documents": 2, "kept": 2, "validation_fraction": 0.1, "split_seed": 0}\n"a"\n',
         "holds 1 lines after its first, and has to hold 2 names"),
        ('{"format": 1, "corpus": "a", "documents": 2, "kept": 1, "validation_fraction": 0.1, "split_seed": 0}\n7\n',
         "holds 1 lines"),
    ],
)  # fmt: skip
def test_a_list_that_is_none(work: Path, tmp_path: Path, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / "kept").write_text(content)
    with pytest.raises(InputError, match=rf"data\.source\.keep: .*{says}"):
        next(documents(source_of(work, keep=str(tmp_path / "kept"))))


def test_a_list_goes_with_its_split_alone(work: Path, tmp_path: Path) -> None:
    prune(work, tmp_path / "kept", "random")
    for settings in (ShardSettings(0.1), ShardSettings(FRACTION, split_seed=1)):
        with pytest.raises(InputError, match=r"was made for data\.validation_fraction 0\.25 and data\.split_seed 0"):
            prepare_source(tmp_path / "out", source_of(work, keep=str(tmp_path / "kept")), ByteTokenizer(), settings)
    with pytest.raises(InputError, match=r"data\.source\.keep is for text, and shards have no names"):
        SourceConfig("shards", "shards", keep="kept")


def test_few_documents_keep_the_one_that_validates(tmp_path: Path) -> None:
    """Where chance leaves none for validation, the nearest one is, with and without the list."""
    (tmp_path / "corpus").mkdir()
    for i in range(4):
        (tmp_path / "corpus" / f"{i}.py").write_text("x = 1\n" * (4 if i == 3 else 1))
    lowest = min((f"{i}.py" for i in range(4)), key=lambda name: split_position(name, 0))
    prune(tmp_path, tmp_path / "kept", "length", fraction=0.9, validation_fraction=0.001)
    kept = read_kept(str(tmp_path / "kept")).names
    assert lowest in kept
    assert len(kept) == 2
    (tmp_path / "corpus" / "0.py").unlink()
    (tmp_path / "corpus" / "1.py").unlink()
    with pytest.raises(InputError, match="one training document only"):
        prune(tmp_path, tmp_path / "again", "length")


def test_an_embedding_that_sees_nothing_is_refused(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what it goes by: sizes of clusters with alpha above 0, distances with alpha below 1."""
    seen = "do not see that a file was made worse"
    for alpha, blind in ((0.8, "small_cluster: .*; distance: .*"), (1.0, "small_cluster: "), (0.0, "distance: ")):
        says = rf"{seen} \({blind}(\w+, )+\w+; `mtp data corruptions --ckpt"
        with pytest.raises(InputError, match=says):
            prune(work, tmp_path / "kept", "scip", force=False, alpha=alpha)
    assert [*tmp_path.iterdir()] == []
    prune(work, tmp_path / "typical", "prototypes")
    assert "gate" not in read_kept(str(tmp_path / "typical")).header.made_by
    monkeypatch.setattr(gate, "NEEDED", 0)
    prune(work, tmp_path / "kept", "scip", force=False)
    verdict = read_kept(str(tmp_path / "kept")).header.made_by["gate"]
    assert (verdict["passed"], verdict["forced"]) == (True, False)
    metadata = pyarrow.parquet.read_schema(f"{tmp_path / 'kept'}.parquet").metadata
    assert json.loads(metadata[b"mtp_lightning.pruning"])["made_by"]["gate"] == verdict


def test_the_table_of_a_model(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--kind", "text", "--path", str(work / "corpus"), "--glob", "**/*.py", "--json", str(tmp_path / "t.json")]
    assert main(["data", "corruptions", "--ckpt", str(work / "a.ckpt"), "--count", "4", *flags]) == 0
    found = json.loads((tmp_path / "t.json").read_text())
    assert {(row["corruption"], row["scorer"]) for row in found["rows"]} == {
        (kind, scorer)
        for kind in ("brackets", "names", "conditions", "assignments", "indices")
        for scorer in ("loss_head_1", "loss_head_2", "loss_head_3", "gap", "distance", "small_cluster")
    }
    edits = {row["corruption"]: row["edits"] for row in found["rows"]}
    assert edits["brackets"] > 4
    assert edits["assignments"] == 0, "the corpus has none"
    assert found["passes"].keys() == {row["scorer"] for row in found["rows"]}
    assert "see at least 3 of the five: " in capsys.readouterr().out


def test_planted_files_and_what_finds_them(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--kind", "text", "--path", str(work / "corpus"), "--glob", "**/*.py", "--validation_fraction", "0.25"]
    assert main(["data", "plant", str(tmp_path / "p"), "--fraction", "0.4", *flags]) == 0
    rows = [json.loads(line) for line in (tmp_path / "p" / "corpus.jsonl").read_text().splitlines()]
    planted = [json.loads(line) for line in (tmp_path / "p" / "planted.txt").read_text().splitlines()]
    clean = {document.name: document.text for document in documents(source_of(work))}
    assert [row["name"] for row in rows] == [*clean]
    changed = {f"corpus.jsonl#{i}" for i, row in enumerate(rows) if row["text"] != clean[row["name"]]}
    assert changed == {row["name"] for row in planted}
    assert all(split_position(name, 0) >= FRACTION for name in changed)
    training = sum(split_position(f"corpus.jsonl#{i}", 0) >= FRACTION for i in range(len(rows)))
    assert len(planted) == round(0.4 * training)
    assert len({row["corruption"] for row in planted}) == 4, "all but assignments take turns"
    json_file, out = tmp_path / "j.json", tmp_path / "kept"
    corpus: dict[str, Any] = {"kind": "json", "path": str(tmp_path / "p" / "corpus.jsonl"), "glob": None}
    prune(work, out, "loss", **corpus, of="documents", planted=str(tmp_path / "p" / "planted.txt"), json=str(json_file))
    table = {row["by"]: row for row in json.loads(json_file.read_text())["planted"]}
    assert table.keys() == {"length", "loss_head_1", "loss_head_2", "loss_head_3", "gap"}
    found = columns(out)
    gone = {name for name, kept in zip(found["name"], found["kept"]) if not kept}
    row = table["loss_head_1"]
    assert row["precision"] == pytest.approx(len(gone & changed) / len(gone), abs=1e-4)
    assert row["recall"] == pytest.approx(len(gone & changed) / len(changed), abs=1e-4)
    assert row["planted"] == pytest.approx(len(changed) / training, abs=1e-4)
    score = dict(zip(found["name"], found["loss_head_1"]))
    pairs = [score[a] > score[b] for a in changed for b in score if b not in changed and score[b] is not None]
    assert row["auc"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-3)
    assert "against the documents that" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"names \d+ documents, and 0 of them are training documents of this corpus"):
        prune(work, tmp_path / "x", "length", planted=str(tmp_path / "p" / "planted.txt"))
    with pytest.raises(InputError, match="the corruptions are of Python"):
        main_raising(["data", "plant", str(tmp_path / "q"), "--kind", "stories", "--max_documents", "6"])


def test_fractions_of_planted_documents_contain_each_other(work: Path, tmp_path: Path) -> None:
    """So that several corpora are a ladder: the same documents, more of them made worse, in the same way."""
    flags = ["--kind", "text", "--path", str(work / "corpus"), "--glob", "**/*.py", "--validation_fraction", "0.25"]
    sound = [document.text for document in documents(source_of(work))]
    texts, names = [sound], [set[str]()]
    for fraction in ("0", "0.2", "0.5"):
        out = tmp_path / fraction
        assert main(["data", "plant", str(out), "--fraction", fraction, *flags]) == 0
        texts.append([json.loads(line)["text"] for line in (out / "corpus.jsonl").read_text().splitlines()])
        names.append({json.loads(line)["name"] for line in (out / "planted.txt").read_text().splitlines()})
    assert texts[1] == sound
    assert not names[1]
    assert names[1] < names[2] < names[3]
    kept = [i for i in range(len(sound)) if f"corpus.jsonl#{i}" in names[2]]
    assert [texts[2][i] for i in kept] == [texts[3][i] for i in kept]
    for fraction in ("-0.1", "1.1"):
        with pytest.raises(InputError, match="fraction"):
            main_raising(["data", "plant", str(tmp_path / "q"), "--fraction", fraction, *flags])
    assert not (tmp_path / "q").exists()


def main_raising(words: list[str]) -> None:
    main([*words, "--debug"])


@pytest.mark.parametrize(
    ("by", "changes", "says"),
    [
        ("losss", {}, r"by is 'losss': it has to be one of length, .*; did you mean 'loss'\?"),
        ("loss_head_0", {}, "by is 'loss_head_0'"),
        ("loss_head_4", {}, "this model has only loss_head_1, loss_head_2, loss_head_3, gap"),
        ("loss", {"fraction": 1.5}, "fraction is 1.5: it has to be above 0 and below 1"),
        ("scip", {"alpha": -0.1}, "alpha is -0.1: it has to be"),
        ("prototypes", {"alpha": 0.1}, "alpha is 0.1, and --by prototypes does not go by it: leave it out"),
        ("loss", {"clusters": 3}, "clusters is 3, and --by loss does not go by it"),
        ("length", {"first_tokens": 3}, "first_tokens is 3, and --by length does not go by it"),
        ("prototypes", {"force": True}, "force: --by prototypes is not refused"),
        ("length", {"kind": "python_stdlib"}, "data.source.path is '.*corpus', and data.source.kind = 'python_stdlib'"),
        ("loss", {"workers": 0}, "workers is 0"),
        ("loss", {"first_tokens": 0}, "first_tokens is 0"),
        ("scip", {"clusters": 40}, r"clusters is 40, and there are \d+ training documents"),
        ("loss", {"ckpt": None}, "ckpt is missing: --by loss asks a model"),
        ("length", {"ckpt": "a.ckpt"}, "--by length asks no model"),
        ("loss", {"ckpt": "nowhere"}, "checkpoint 'nowhere' is not a file"),
        ("length", {"path": "nowhere"}, "there is no file or folder 'nowhere'"),
        ("length", {"planted": "nowhere"}, "planted: there is no file 'nowhere'"),
        ("length", {"fraction": None}, "--by, --fraction and --out are needed"),
    ],
)
def test_bad_input_writes_nothing(work: Path, tmp_path: Path, by: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        prune(work, tmp_path / "kept", by, **changes)
    assert [*tmp_path.iterdir()] == []


def test_nothing_is_overwritten(work: Path, tmp_path: Path) -> None:
    (tmp_path / "kept.parquet").write_text("mine")
    with pytest.raises(InputError, match=r"out: '.*kept\.parquet' exists already"):
        prune(work, tmp_path / "kept", "length")
    with pytest.raises(InputError, match="--ckpt or --embedder is needed"):
        corruptions_command()
    assert (tmp_path / "kept.parquet").read_text() == "mine"
