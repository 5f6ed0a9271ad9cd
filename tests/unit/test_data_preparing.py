"""Preparing a corpus: the same bytes whatever the workers and however often it was killed; duplicates; damage."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mtp_lightning.data import SourceConfig, TokenDataModule
from mtp_lightning.data.corpora.account import Account
from mtp_lightning.data.corpora.documents import Document, documents
from mtp_lightning.data.preparing import chunks, pieces
from mtp_lightning.data.tokens.prepare import ShardSettings, cache_name, prepare_shards, prepare_source, summary
from mtp_lightning.data.tokens.store import read_meta
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer, Tokenizer
from mtp_lightning.data.tokens.verify import VERIFIED_FILE, verify_shards
from mtp_lightning.data.tokens.writer import SplitWriter
from mtp_lightning.errors import InputError

TOKENIZER = ByteTokenizer()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "CHARACTERS", 200)


def corpus(count: int = 60, answers: bool = False) -> list[Document]:
    texts = [f"text {i} 🙂 " * (1 + i * 7 % 5) for i in range(count)]
    return [Document(f"doc{i}", text, 4 if answers else None) for i, text in enumerate(texts)]


def make(directory: Path, found: Any = None, workers: int = 1, answers: bool = False) -> dict[str, bytes]:
    """Name -> bytes of all files."""
    found = corpus(answers=answers) if found is None else found
    settings = ShardSettings(validation_fraction=0.3, shard_tokens=500)
    prepare_shards(directory, lambda: iter(found), TOKENIZER, {}, settings, answers=answers, workers=workers)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("answers", [False, True])
def test_bytes_do_not_depend_on_workers_and_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    whole = make(tmp_path / "whole", answers=answers)
    monkeypatch.setattr(pieces, "CHARACTERS", 200)
    monkeypatch.setattr(pieces, "_pool", lambda workers, job: ThreadPoolExecutor(workers, "", pieces._begin, (job,)))
    for workers in (1, 2, 3):
        assert make(tmp_path / str(workers), workers=workers, answers=answers) == whole
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "1", "2", "3"}


@pytest.mark.slow
def test_real_workers(tmp_path: Path, small_chunks: None) -> None:
    assert make(tmp_path / "two", workers=2) == make(tmp_path / "one")


def cut_off(found: list[Document], after: int) -> Iterator[Document]:
    yield from found[:after]
    raise KeyboardInterrupt


class Spy:
    """Names of the documents that were tokenized."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        real = chunks.tokenize

        def spied(found: Any, tokenizer: Tokenizer) -> Any:
            self.names += [document.name for document in found]
            return real(found, tokenizer)

        monkeypatch.setattr(chunks, "tokenize", spied)


def test_what_was_tokenized_before_a_kill_is_kept(
    tmp_path: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = make(tmp_path / "whole")
    spy = Spy(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "killed", cut_off(corpus(), 40))
    assert [path.name for path in tmp_path.iterdir() if path.name != "whole"] == [".killed.partial"]
    before = len(spy.names)
    assert 20 < before <= 40
    assert make(tmp_path / "killed") == whole
    assert spy.names == [document.name for document in corpus()]
    assert f"went on: {before} of 60 documents" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "killed"}


@pytest.mark.parametrize("how", [lambda b: b[:-40], lambda b: b[:300] + b"x" + b[301:], lambda b: b""])
def test_what_was_damaged_since_is_tokenized_again(tmp_path: Path, small_chunks: None, how: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "killed", cut_off(corpus(), 40))
    path = sorted((tmp_path / ".killed.partial").glob("*.npz"))[1]
    path.write_bytes(how(path.read_bytes()))
    assert make(tmp_path / "killed") == make(tmp_path / "whole")


def test_a_kill_while_shards_are_written(tmp_path: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make(tmp_path / "whole")
    more = [*corpus(), *(Document(f"more{i}", "x" * 100) for i in range(40))]
    with monkeypatch.context() as patch:
        patch.setattr(SplitWriter, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "killed", more)
    assert (tmp_path / ".killed.partial" / "shards" / "train-00003.bin").is_file()
    spy = Spy(monkeypatch)
    assert make(tmp_path / "killed") == whole  # fewer documents than before: no shard file too many
    assert len(spy.names) < 10


def test_other_text_is_tokenized_again(tmp_path: Path, small_chunks: None) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "killed", cut_off(corpus(), 40))
    changed = [Document("doc3", "another"), *corpus()]
    assert make(tmp_path / "killed", changed) == make(tmp_path / "whole", changed)


def test_duplicates_are_left_out_and_counted(tmp_path: Path) -> None:
    lines = ["one", "two", "one", "three", "two", "one", "four"]
    (tmp_path / "x.txt").write_text("\n".join(lines))
    plain = SourceConfig(kind="text", path=str(tmp_path / "x.txt"), separator="\n")
    source = SourceConfig(kind="text", path=str(tmp_path / "x.txt"), separator="\n", deduplicate=True)
    assert [document.text for document in documents(source)] == ["one", "two", "three", "four"]
    account = Account()
    first = SourceConfig(kind="text", path=plain.path, separator="\n", deduplicate=True, max_documents=3, strict=True)
    assert [document.name for document in documents(first, account)] == ["x.txt#0", "x.txt#1", "x.txt#3"]
    assert account.missing() == "duplicates: 1 (x.txt#2)"
    meta = prepare_source(tmp_path / "shards", source, TOKENIZER, ShardSettings(0.3))
    assert "documents 4," in summary(source, meta)
    assert summary(source, meta).endswith("left out: duplicates: 3 (x.txt#2; x.txt#4; x.txt#5)")
    assert cache_name(source, TOKENIZER, ShardSettings()) != cache_name(plain, TOKENIZER, ShardSettings())
    assert "deduplicate" not in prepare_source(tmp_path / "all", plain, TOKENIZER, ShardSettings(0.3)).source


def test_a_changed_byte_is_noticed_when_shards_are_first_used(tmp_path: Path) -> None:
    directory = tmp_path / "shards"
    names = make(directory).keys() - {"meta.json"}
    meta = read_meta(directory)
    assert set(verify_shards(directory, meta)) == names
    assert verify_shards(directory, meta) == []
    for name in ("train-00001.bin", "validation-documents.bin"):
        path = directory / name
        content, status = path.read_bytes(), path.stat()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
        with pytest.raises(InputError, match=rf"{name}' is damaged: its content is not what was written"):
            verify_shards(directory, meta)
        data = TokenDataModule(SourceConfig(kind="shards", path=str(directory)), context=16)
        with pytest.raises(InputError, match=rf"{name}' is damaged"):
            data.prepare_data()
        path.write_bytes(content)
        assert verify_shards(directory, meta) == [name]
    (directory / VERIFIED_FILE).write_text("[")
    assert set(verify_shards(directory, meta)) == names
    (directory / "train-00000.bin").unlink()
    with pytest.raises(InputError, match=r"train-00000\.bin' cannot be read \(No such file"):
        verify_shards(directory, meta)
    fields = json.loads((directory / "meta.json").read_text())
    del fields["hashes"]
    (directory / "meta.json").write_text(json.dumps(fields))  # as shards of earlier versions
    assert verify_shards(directory, read_meta(directory)) == []


def hub_data_set(folder: Path) -> SourceConfig:
    """As a data set lies on the hub: a card that names its configurations, two Parquet files in one of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    card = "configs:\n- config_name: small\n  data_files:\n  - {split: train, path: small/train-*.parquet}\n"
    folder.mkdir()
    (folder / "README.md").write_text(f"---\n{card}---\n# Texts\n")
    (folder / "small").mkdir()
    for part in range(2):
        rows = [{"body": document.text, "id": 1} for document in corpus()[30 * part : 30 * (part + 1)]]
        pq.write_table(pa.Table.from_pylist(rows), folder / "small" / f"train-{part:05d}-of-00002.parquet")
    return SourceConfig("hub", str(folder), name="small", text_column="body")


def test_a_hub_data_set_streams_into_the_same_shards_whatever_the_workers_and_kills(
    tmp_path: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, as the house's tests run: by the `datasets` library from a folder."""
    source = hub_data_set(tmp_path / "texts")
    settings = ShardSettings(validation_fraction=0.3, shard_tokens=500)
    monkeypatch.setattr(pieces, "_pool", lambda workers, job: ThreadPoolExecutor(workers, "", pieces._begin, (job,)))

    def made(name: str, workers: int = 1) -> dict[str, bytes]:
        prepare_source(tmp_path / name, source, TOKENIZER, settings, workers)
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.name != VERIFIED_FILE}

    whole = made("whole")
    assert read_meta(tmp_path / "whole").splits["train"].n_documents < 60
    assert sum(split.n_documents for split in read_meta(tmp_path / "whole").splits.values()) == 60
    named = [Document(f"train#{i}", document.text) for i, document in enumerate(corpus())]
    assert list(documents(source, Account())) == named, "both files, in their order"
    assert made("three", workers=3) == whole

    spy = Spy(monkeypatch)
    real = chunks.tokenize

    def killed(found: Any, tokenizer: Tokenizer) -> Any:
        if len(spy.names) > 30:
            raise KeyboardInterrupt
        return real(found, tokenizer)

    monkeypatch.setattr(chunks, "tokenize", killed)
    with pytest.raises(KeyboardInterrupt):
        made("killed")
    before = len(spy.names)
    monkeypatch.setattr(chunks, "tokenize", real)
    assert made("killed") == whole
    assert 30 < before < 60
    assert len(spy.names) == 60, "streamed again, and what was tokenized before the kill not once more"


def test_no_more_of_a_hub_data_set_is_read_than_is_asked_for(tmp_path: Path) -> None:
    source = hub_data_set(tmp_path / "texts")
    (tmp_path / "texts" / "small" / "train-00001-of-00002.parquet").write_bytes(b"no Parquet")
    first = replace(source, max_documents=30)
    assert [document.text for document in documents(first, Account())] == [each.text for each in corpus()[:30]]
    with pytest.raises(InputError, match=r"data\.source\.path: .*texts' \(hub\) cannot be read"):
        list(documents(source, Account()))
