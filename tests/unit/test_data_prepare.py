import json
import multiprocessing
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damages import DAMAGES
from hypothesis import given
from hypothesis import strategies as st

from mtp_lightning.data.corpora.documents import Document
from mtp_lightning.data.corpora.source import SourceConfig
from mtp_lightning.data.preparing.chunks import split_position
from mtp_lightning.data.tokens import prepare
from mtp_lightning.data.tokens.prepare import ShardSettings, cache_name, prepare_shards, smallest_dtype
from mtp_lightning.data.tokens.store import SPLITS, TokenStore, read_meta
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer
from mtp_lightning.errors import InputError

TOKENIZER = ByteTokenizer()


def corpus(count: int = 40) -> list[Document]:
    return [Document(f"doc{i}", f"text {i} 🙂 " * (1 + i * 7 % 5)) for i in range(count)]


def make(directory: Path, found: list[Document] | None = None, fraction: float = 0.3, **settings: int) -> Path:
    found = corpus() if found is None else found
    prepare_shards(directory, lambda: found, TOKENIZER, {}, ShardSettings(validation_fraction=fraction, **settings))
    return directory


def expected(split: str, fraction: float = 0.3) -> list[list[int]]:
    chosen = [d for d in corpus() if (split_position(d.name, 0) < fraction) == (split == "validation")]
    return [[*d.text.encode(), 255] for d in chosen]


def flat(documents: list[list[int]]) -> list[int]:
    return [token for document in documents for token in document]


@pytest.mark.parametrize("shard_tokens", [7, 64, 1 << 20])
def test_shards_read_like_one_long_array(tmp_path: Path, shard_tokens: int) -> None:
    directory = make(tmp_path / "shards", shard_tokens=shard_tokens)
    for split in SPLITS:
        store, whole = TokenStore(directory, split), flat(expected(split))
        assert len(store) == len(whole)
        assert max(store.split_meta.shards) <= shard_tokens
        for start, length in [(0, len(whole)), (0, 1), (5, 20), (6, 1), (7, 7), (len(whole) - 3, 3), (3, 0)]:
            tokens = store.read(start, length)
            assert tokens.dtype == np.int64
            assert tokens.tolist() == whole[start : start + length]
        assert store.split_meta.n_bytes == len(whole) - store.split_meta.n_documents


@given(st.lists(st.integers(1, 12), min_size=1, max_size=20), st.data())
def test_document_ids(lengths: list[int], data: st.DataObject) -> None:
    store = TokenStore.__new__(TokenStore)
    store.document_starts = np.cumsum([0, *lengths[:-1]])
    ids = [i for i, length in enumerate(lengths) for _ in range(length)]
    start = data.draw(st.integers(0, len(ids)))
    length = data.draw(st.integers(0, len(ids) - start))
    found = store.document_ids(start, length)
    assert found.dtype == np.int32
    assert found.tolist() == ids[start : start + length]


def test_document_ids_of_a_store(tmp_path: Path) -> None:
    directory = make(tmp_path / "shards", shard_tokens=10)
    store, parts = TokenStore(directory, "train"), expected("train")
    ids = [i for i, part in enumerate(parts) for _ in part]
    assert store.document_ids(0, len(store)).tolist() == ids


def test_the_split_is_by_name_whatever_the_order(tmp_path: Path) -> None:
    first = make(tmp_path / "first")
    second = make(tmp_path / "second", corpus()[::-1])
    other_seed = make(tmp_path / "other", split_seed=1)

    def texts(directory: Path, split: str) -> set[str]:
        store = TokenStore(directory, split)  # type: ignore[arg-type]
        whole = bytes(store.read(0, len(store)).tolist())
        return {part.decode() for part in whole.split(b"\xff")[:-1]}

    assert texts(first, "validation") == texts(second, "validation")
    assert texts(first, "validation") != texts(other_seed, "validation")
    assert texts(first, "validation").isdisjoint(texts(first, "train"))
    assert texts(first, "validation") | texts(first, "train") == {d.text for d in corpus()}


def test_the_fraction_is_kept() -> None:
    positions = [split_position(f"name {i}", 3) for i in range(4000)]
    assert abs(np.mean(np.array(positions) < 0.2) - 0.2) < 0.02


@pytest.mark.parametrize("fraction", [1e-6, 1 - 1e-6])
@pytest.mark.parametrize("count", [2, 5])
def test_no_split_is_empty(tmp_path: Path, fraction: float, count: int) -> None:
    directory = make(tmp_path / "shards", corpus(count), fraction=fraction, shard_tokens=9)
    meta = read_meta(directory)
    few, many = ("validation", "train") if fraction < 0.5 else ("train", "validation")
    assert (meta.splits[few].n_documents, meta.splits[many].n_documents) == (1, count - 1)
    n_files = sum(len(meta.splits[split].shards) + 1 for split in SPLITS) + 1
    assert len(list(directory.iterdir())) == n_files


def test_one_document_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only one document"):
        make(tmp_path / "shards", corpus(1))
    assert list(tmp_path.iterdir()) == []


def test_fingerprint_is_of_the_tokens(tmp_path: Path) -> None:
    fingerprints = [
        read_meta(make(tmp_path / "a")).fingerprint,
        read_meta(make(tmp_path / "b", shard_tokens=5)).fingerprint,
        read_meta(make(tmp_path / "c", [*corpus()[:-1], Document("doc39", "changed")])).fingerprint,
    ]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")]
)
def test_smallest_dtype(vocab_size: int, dtype: str) -> None:
    assert smallest_dtype(vocab_size) == dtype


def test_wide_tokens_keep_their_values(tmp_path: Path) -> None:
    class Wide(ByteTokenizer):
        vocab_size = 70_000
        eos_id = 69_999  # type: ignore[assignment]

    prepare_shards(tmp_path / "wide", corpus, Wide(), {}, ShardSettings(0.3))
    store = TokenStore(tmp_path / "wide", "train")
    assert store.read(0, len(store)).max() == 69_999


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError])
def test_nothing_is_left_after_an_interruption(tmp_path: Path, error: type[BaseException]) -> None:
    def broken() -> Iterator[Document]:
        yield from corpus(2000)
        raise error

    with pytest.raises(error):
        prepare_shards(tmp_path / "shards", broken, TOKENIZER, {}, ShardSettings())
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    original = Path.open

    def full(self: Path, *args: str, **kwargs: str) -> object:
        return original(Path("/dev/full") if self.suffix == ".bin" else self, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InputError, match=r"data\.directory.*No space left"):
        make(tmp_path / "shards")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"data\.directory: cannot write the shards to"):
        make(tmp_path / "file" / "shards")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match=r"'.*mine' exists and does not hold token shards"):
        make(tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def _prepare_when_told(directory: Path, start: "multiprocessing.synchronize.Barrier") -> None:
    def waiting() -> Iterator[Document]:
        start.wait(30)
        yield from corpus()

    prepare_shards(directory, waiting, TOKENIZER, {}, ShardSettings(0.3))


def test_two_processes_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    processes = [context.Process(target=_prepare_when_told, args=(tmp_path / "shards", barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["shards"]
    assert len(TokenStore(tmp_path / "shards", "train")) == len(flat(expected("train")))


def test_the_second_one_takes_what_the_first_made(tmp_path: Path) -> None:
    def overtaken() -> list[Document]:
        make(tmp_path / "shards", corpus(10))
        return corpus(20)

    meta = prepare_shards(tmp_path / "shards", overtaken, TOKENIZER, {}, ShardSettings(0.3))
    assert sum(split.n_documents for split in meta.splits.values()) == 10
    assert [p.name for p in tmp_path.iterdir()] == ["shards"]


def test_a_prepared_corpus_is_not_prepared_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.txt").write_text("one\ntwo\nthree")
    source = SourceConfig(kind="text", path=str(tmp_path / "x.txt"), separator="\n")
    meta = prepare.prepare_source(tmp_path / "shards", source, TOKENIZER, ShardSettings())
    monkeypatch.setattr(prepare, "documents", lambda *_: pytest.fail("read again"))
    assert prepare.prepare_source(tmp_path / "shards", source, TOKENIZER, ShardSettings()) == meta


def test_cache_name_follows_what_matters(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("one\ntwo\nthree")
    source = SourceConfig(kind="text", path=str(path))
    names = [
        cache_name(source, TOKENIZER, ShardSettings()),
        cache_name(source, TOKENIZER, ShardSettings(validation_fraction=0.1)),
        cache_name(source, TOKENIZER, ShardSettings(split_seed=1)),
        cache_name(SourceConfig(kind="text", path=str(path), separator="\n"), TOKENIZER, ShardSettings()),
    ]
    assert names[0] == cache_name(source, TOKENIZER, ShardSettings(shard_tokens=9))
    path.write_text("one\ntwo\nthree\nfour")
    names.append(cache_name(source, TOKENIZER, ShardSettings()))
    assert len(set(names)) == 5
    assert all(name.startswith("x-") for name in names)


def test_damaged_shards(tmp_path: Path) -> None:
    directory = make(tmp_path / "shards")
    with pytest.raises(InputError, match="not a folder of token shards"):
        TokenStore(tmp_path, "train")
    shard = directory / "train-00000.bin"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(InputError, match=rf"train-00000\.bin' has {len(content) - 1} bytes, and meta\.json says"):
        TokenStore(directory, "train")
    shard.unlink()
    with pytest.raises(InputError, match=r"train-00000\.bin' is missing"):
        TokenStore(directory, "train")
    meta = (directory / "meta.json").read_text()
    (directory / "meta.json").write_text(meta.replace('"format": 1', '"format": 99'))
    with pytest.raises(InputError, match="format 99, and this version reads format 1"):
        TokenStore(directory, "train")
    (directory / "meta.json").write_text(meta[:50])
    with pytest.raises(InputError, match=r"meta\.json' is damaged"):
        TokenStore(directory, "train")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_description_that_may_hold_anything(tmp_path: Path, damage: str) -> None:
    directory = make(tmp_path / "shards")
    (directory / "meta.json").unlink()
    DAMAGES[damage](directory / "meta.json")
    with pytest.raises(InputError, match=r"meta\.json' is damaged|holds shards of format None"):
        read_meta(directory)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda meta: meta.update(dtype="object"), "its 'dtype' is 'object'"),
        (lambda meta: meta.update(vocab_size=True), "its 'vocab_size' is True, and has to be int"),
        (lambda meta: meta.update(answerz=meta.pop("answers", True)), "its 'answerz' is unknown to this version"),
        (lambda meta: meta.update(answers=True), "its 'hashes' are of other files"),
        (lambda meta: meta["splits"].pop("train"), "its 'splits' are not train and validation"),
        (lambda meta: meta["splits"]["train"].update(shards=[]), "the numbers of its split 'train' cannot be"),
        (lambda meta: meta["splits"]["train"].update(n_bytes=-1), "the numbers of its split 'train' cannot be"),
        (lambda meta: meta["splits"]["train"].update(n_documents="3"), "its 'splits.train.n_documents' is '3'"),
        (lambda meta: meta.update(account={"files": 1, "left_out": [{}]}), "has no 'account.left_out.0.reason'"),
    ],
)
def test_a_description_that_does_not_fit_together(tmp_path: Path, change: Any, says: str) -> None:
    directory = make(tmp_path / "shards")
    meta = json.loads((directory / "meta.json").read_text())
    change(meta)
    (directory / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(InputError, match=rf"meta\.json' is damaged \({says}"):
        read_meta(directory)


def test_a_pickled_store_holds_no_data(tmp_path: Path) -> None:
    store = TokenStore(make(tmp_path / "shards"), "train")
    pickled = pickle.dumps(store)
    assert len(pickled) < 500
    assert pickle.loads(pickled).read(3, 9).tolist() == store.read(3, 9).tolist()


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0])
def test_bad_settings(fraction: float) -> None:
    with pytest.raises(InputError, match=r"data\.validation_fraction is"):
        ShardSettings(validation_fraction=fraction)
    with pytest.raises(InputError, match=r"data\.shard_tokens is 0"):
        ShardSettings(shard_tokens=0)
