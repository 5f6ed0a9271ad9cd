import json
import re
from io import TextIOWrapper
from pathlib import Path

import pytest

from mtp_lightning.data.corpora.documents import Document, _parts, documents
from mtp_lightning.data.corpora.source import SourceConfig
from mtp_lightning.data.stories import generator as stories
from mtp_lightning.data.stories import templates
from mtp_lightning.data.tokens.prepare import ShardSettings, cache_name
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer
from mtp_lightning.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name, text in {"b.txt": "bee", "a.txt": "ay", "sub/c.txt": "see", "d.md": "dee", "empty.txt": ""}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def read(**source: object) -> list[Document]:
    return list(documents(SourceConfig(**source)))  # type: ignore[arg-type]


def test_python_stdlib_is_code_without_tests() -> None:
    found = read()
    names = [document.name for document in found]
    assert "argparse.py" in names
    assert "json/decoder.py" in names
    assert names == sorted(set(names), key=Path)
    assert not {part for name in names for part in name.split("/")} & {"test", "tests", "site-packages"}
    assert read(max_documents=3) == found[:3]


def test_stories_need_no_path_and_more_of_them_begin_with_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found = read(kind="stories", max_documents=30)
    assert [document.name for document in found] == [f"story#{i}" for i in range(30)]
    assert [document.text for document in found] == list(stories.stories(30))
    assert read(kind="stories", max_documents=3) == found[:3]
    monkeypatch.setattr("mtp_lightning.data.corpora.documents.DEFAULT_COUNT", 30)
    assert read(kind="stories") == found


def test_stories_of_another_generator_are_another_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cached(**source: object) -> str:
        config = SourceConfig(kind="stories", **source)  # type: ignore[arg-type]
        return cache_name(config, ByteTokenizer(), ShardSettings())

    copies = []
    for module, name in ((stories, "__file__"), (templates, "__file__"), (templates, "FILE")):
        original = Path(getattr(module, name))
        copies.append(tmp_path / original.name)
        copies[-1].write_bytes(original.read_bytes())
        monkeypatch.setattr(module, name, copies[-1])
    before = cached(max_documents=30)
    assert before.startswith("stories-")
    assert before == cached(max_documents=30) != cached(max_documents=31)
    for copy in copies:
        copy.write_bytes(copy.read_bytes() + b"# edited")
        assert cached(max_documents=30) != before
        before = cached(max_documents=30)


def test_text_folder_file_and_glob(folder: Path) -> None:
    expected = [Document("a.txt", "ay"), Document("b.txt", "bee"), Document("sub/c.txt", "see")]
    assert read(kind="text", path=str(folder)) == expected
    assert read(kind="text", path=str(folder / "**" / "*.txt")) == expected
    assert read(kind="text", path=str(folder), glob="*.md") == [Document("d.md", "dee")]
    assert read(kind="text", path=str(folder / "d.md")) == [Document("d.md", "dee")]


@pytest.mark.parametrize("separator", ["\n", "\\n"])
def test_separator_splits_a_file(tmp_path: Path, separator: str) -> None:
    (tmp_path / "lines.txt").write_text("one\n\ntwo\nthree", encoding="utf-8")
    assert read(kind="text", path=str(tmp_path / "lines.txt"), separator=separator) == [
        Document("lines.txt#0", "one"),
        Document("lines.txt#2", "two"),
        Document("lines.txt#3", "three"),
    ]


@pytest.mark.parametrize("chunk", range(1, 9))
def test_separators_across_pieces(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtp_lightning.data.corpora.documents._CHUNK", chunk)
    (tmp_path / "x.txt").write_text("ab<|eot|>🙂d<|eot|><|eot|>e<|", encoding="utf-8")
    found = read(kind="text", path=str(tmp_path / "x.txt"), separator="<|eot|>")
    assert [document.text for document in found] == ["ab", "🙂d", "e<|"]


@pytest.mark.parametrize("pattern", [r"(?<!\n)\n(?!\n)", r"\n+", r"t|(?<=t)h"])
@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 100])
def test_a_separator_may_be_a_regular_expression(
    tmp_path: Path, chunk: int, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "one\n\nstill one\ntwo\nthree\n\nstill\n\nthree\n"
    monkeypatch.setattr("mtp_lightning.data.corpora.documents._CHUNK", chunk)
    monkeypatch.setattr("mtp_lightning.data.corpora.documents._AROUND", 4)
    (tmp_path / "x.txt").write_text(text, encoding="utf-8")
    found = read(kind="text", path=str(tmp_path / "x.txt"), separator=f"re:{pattern}")
    assert [document.text for document in found] == [part for part in re.split(pattern, text) if part]


def test_a_text_without_separators_is_not_looked_through_for_each_piece(tmp_path: Path) -> None:
    """After each read all that is held is: of 1,024 pieces it would be 512 times the text."""
    path = tmp_path / "one.txt"
    path.write_text("x" * 8192)
    reads = 0

    class Counting(TextIOWrapper):
        def read(self, size: int | None = -1, /) -> str:
            nonlocal reads
            reads += 1
            return super().read(size)

    with pytest.MonkeyPatch.context() as patch, Counting(path.open("rb")) as file:
        patch.setattr("mtp_lightning.data.corpora.documents._CHUNK", 8)
        assert list(_parts(file, re.compile("y"))) == ["x" * 8192]
    assert reads <= 13, "twice as much each time, and the end"


def test_json_and_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"body": "one", "id": 1}, {"body": "", "id": 2}, {"body": "three", "id": 3}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "empty.jsonl").write_text("")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for kind, name in (("json", "a.jsonl"), ("parquet", "a.parquet")):
        expected = [Document(f"{name}#0", "one"), Document(f"{name}#2", "three")]
        assert read(kind=kind, path=str(tmp_path), text_column="body") == expected
    with pytest.raises(InputError, match=r"data\.source\.text_column: .*no column 'bodi'.*\(it has body, id\).*'body'"):
        read(kind="parquet", path=str(tmp_path), text_column="bodi")
    with pytest.raises(InputError, match=r"'id' of .* is not text: line 1 has a int"):
        read(kind="json", path=str(tmp_path), text_column="id")


def test_hub_reads_a_data_set_by_name(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert read(kind="hub", path=str(tmp_path)) == [Document("train#0", "one"), Document("train#1", "two")]
    with pytest.raises(InputError, match=r"data\.source\.path.*Bad split: nope. Available splits: \['train'\]"):
        read(kind="hub", path=str(tmp_path), split="nope")
    with pytest.raises(InputError, match=r"data\.source\.path: '.*nowhere' was not found"):
        read(kind="hub", path=str(tmp_path / "nowhere"))


def test_bad_sources(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.source\.path is missing.*'text'"):
        SourceConfig(kind="text")
    with pytest.raises(InputError, match=r"data\.source\.separator is empty"):
        SourceConfig("text", "a.txt", separator="")
    with pytest.raises(InputError, match=r"data\.source\.separator: 're:\(' is no regular expression: missing \)"):
        SourceConfig("text", "a.txt", separator="re:(")
    with pytest.raises(InputError, match=r"data\.source\.max_documents is 0"):
        SourceConfig(max_documents=0)
    for key, kind in (("path", "stories"), ("glob", "hub"), ("separator", "json"), ("text_column", "pairs"),
                      ("name", "parquet"), ("split", "text"), ("revision", "shards")):  # fmt: skip
        path = None if kind == "stories" else "x"
        with pytest.raises(InputError, match=rf"data\.source\.{key} is 'y', and .*kind = '{kind}' does not"):
            SourceConfig(**{"kind": kind, "path": path} | {key: "y"})  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match=r"data\.source\.path: there is no file or folder '.*a\.tx'; did you mean 'a\.txt'"
    ):
        read(kind="text", path=str(folder / "a.tx"))
    with pytest.raises(InputError, match=r"data\.source\.path: no file in '.*' matches \*\.rst"):
        read(kind="text", path=str(folder), glob="*.rst")
    with pytest.raises(InputError, match=r"data\.source\.path: no file in '.*' matches \.parquet"):
        read(kind="parquet", path=str(folder))
    with pytest.raises(InputError, match=r"data\.source\.path: '.*empty\.txt' has no text in it"):
        read(kind="text", path=str(folder / "empty.txt"))
    with pytest.raises(InputError, match="prepared already"):
        read(kind="shards", path=str(folder))


def test_not_text(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"abc\xff\xfe")
    with pytest.raises(InputError, match=r"data\.source\.path: '.*x\.txt', line 1, is not UTF-8 text"):
        read(kind="text", path=str(tmp_path))
    (tmp_path / "x.jsonl").write_text('{"text": "a"\nfoo\n')
    with pytest.raises(InputError, match=r"data\.source\.path: '.*x\.jsonl', line 2: not JSON: Expecting ','"):
        read(kind="json", path=str(tmp_path))
    (tmp_path / "x.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(InputError, match=r"'.*x\.parquet' \(parquet\) cannot be read: Parquet"):
        read(kind="parquet", path=str(tmp_path))
