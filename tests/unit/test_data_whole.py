"""Every file and every row is accounted for: read by its own name, or counted among what is left out."""

import bz2
import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtp_lightning.cli import main
from mtp_lightning.data.corpora.account import Account
from mtp_lightning.data.corpora.documents import documents
from mtp_lightning.data.corpora.rows import json_rows
from mtp_lightning.data.corpora.source import SourceConfig
from mtp_lightning.data.tokens.prepare import ShardSettings, cache_name, prepare_source, summary
from mtp_lightning.data.tokens.store import read_meta
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer
from mtp_lightning.errors import InputError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(path: str, kind: str = "json", **source: Any) -> tuple[dict[str, str], dict[str, int]]:
    """Texts by name, and how much is left out for which reason."""
    account = Account()
    read_documents = documents(SourceConfig(kind=kind, path=path, **source), account)  # type: ignore[arg-type]
    found = {document.name: document.text for document in read_documents}
    return found, dict(account.left_out)


def rows(name: str, *texts: Any) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


NAMES = ["train [1].jsonl", "train 1.jsonl", "part*.jsonl", "part1.jsonl", "a?.jsonl", "%41.jsonl", "s3:__x.jsonl"]


@pytest.mark.parametrize("kind", ["json", "parquet", "text"])
def test_a_file_is_read_by_its_own_name(kind: str) -> None:
    suffix = {"json": ".jsonl", "parquet": ".parquet", "text": ".txt"}[kind]
    names = [name.replace(".jsonl", suffix) for name in NAMES]
    for name in names:
        rows(f"in/{name}", name)
        if kind == "parquet":
            pq.write_table(pa.table({"text": [name]}), f"in/{name}")
    expected = {f"{name}#0" if kind != "text" else name for name in names}
    found, left_out = read("in", kind)
    assert found.keys() == expected
    assert left_out == {}
    assert all(name.partition("#")[0] in text for name, text in found.items())
    for name in names:
        assert len(read(f"in/{name}", kind)[0]) == 1
    assert read(f"in/part*{suffix}", kind)[0].keys() == {f"part*{suffix}#0" if kind != "text" else f"part*{suffix}"}


def test_a_pattern_below_a_folder_whose_name_looks_like_one() -> None:
    rows("data [1]/x1.jsonl", "right")
    rows("data 1/x1.jsonl", "wrong")
    assert read("data [1]/x*.jsonl")[0] == {"x1.jsonl#0": "right"}
    assert read("data ?/x*.jsonl")[0] == {"data 1/x1.jsonl#0": "wrong"}


def test_links_are_followed_and_each_file_is_read_once() -> None:
    rows("in/real/a.jsonl", "a")
    rows("ext/deep/b.jsonl", "b")
    os.symlink("../ext", "in/linked")
    os.symlink("..", "in/real/loop")
    os.symlink("../../ext", "ext/deep/again")
    os.symlink("real/a.jsonl", "in/0.jsonl")
    os.symlink("nowhere.jsonl", "in/gone.jsonl")
    os.symlink("itself.jsonl", "in/itself.jsonl")
    for path, glob in (("in", None), ("in", "**/*.jsonl"), ("in/**/*.jsonl", None)):
        found, left_out = read(path, glob=glob)
        assert found == {"linked/deep/b.jsonl#0": "b", "real/a.jsonl#0": "a"}
        assert left_out == {"links to a file that is read already": 1, "links to nothing": 2}


def test_what_lies_beside_is_counted() -> None:
    for name in ("a.jsonl", "b.jsonl.zst", "C.JSONL", "README", ".hidden.jsonl", "empty.jsonl"):
        rows(f"in/{name}", *([] if name == "empty.jsonl" else [name]))
    os.mkfifo("in/pipe.jsonl")
    found, left_out = read("in")
    assert found.keys() == {"a.jsonl#0", ".hidden.jsonl#0"}
    assert left_out == {
        "files of .zst": 1, "files of .JSONL": 1, "files without suffix": 1, "empty files": 1, "that are no files": 1,
    }  # fmt: skip
    assert read("in/*.jsonl")[1] == {
        "hidden files, which a pattern does not match": 1, "that are no files": 1, "empty files": 1,
    }  # fmt: skip
    assert read("in", glob="a*")[1] == {}


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_only_one_column_is_read_and_every_row_is_counted(kind: str) -> None:
    texts = ["one", "", None, "\n", "five"]
    other = [None, 3, "m", {"text": "x"}, [[]]]
    lines = [json.dumps({"meta": meta, "text": text}) for meta, text in zip(other, texts)]
    Path("x.json").write_text("\n".join([*lines, '{"n": ' + "9" * 5000 + "}", '{"text": 5, "x": NaN}', "null"]))
    columns = {"meta": list(range(5)), "text": texts}
    pq.write_table(pa.table(columns), "x.parquet")
    found, left_out = read(f"x.{kind}", kind)
    assert found == {f"x.{kind}#0": "one", f"x.{kind}#3": "\n", f"x.{kind}#4": "five"}
    more = {"rows without text": 3, "rows whose column is not text": 1} if kind == "json" else {"rows without text": 1}
    assert left_out == {"empty rows": 1, **more}
    with pytest.raises(InputError, match=rf"data\.source\.strict: 'x\.{kind}' is not read as a whole.*empty rows: 1"):
        read(f"x.{kind}", kind, strict=True)


def test_a_column_may_change_its_kind_late() -> None:
    """A reader that guesses the columns' types from the beginning fails there."""
    with Path("x.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": "x" * 5000, "meta": None if i < 3000 else "m"}) + "\n" for i in range(3010))
    assert len(read("x.jsonl")[0]) == 3010


def test_parts_without_rows_add_nothing() -> None:
    Path("in").mkdir()
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), "in/0.parquet")
    pq.write_table(pa.table({"text": ["a", "b"]}), "in/1.parquet")
    pq.write_table(pa.table({"other": pa.array([], pa.int64())}), "in/2.parquet")
    pq.write_table(pa.table({"text": pa.array(["a", "c"]).dictionary_encode()}), "in/3.parquet")
    assert [*read("in", "parquet")[0].values()] == ["a", "b", "a", "c"]


LAYOUTS = {
    "lines": '{"text": "a"}\n{"text": "b\u2028c\\n"}\n',
    "CRLF": '{"text": "a"}\r\n\r\n{"text": "b\u2028c\\n"}',
    "CR": '{"text": "a"}\r{"text": "b\u2028c\\n"}\r',
    "one after the other": '{"text": "a"}{"text": "b\u2028c\\n"}',
    "laid out": '{\n "text": "a"\n}\n{\n "text": "b\u2028c\\n",\n "x": {}}\n',
    "laid out from the second on": '{"text": "a"}\n\n{\n "text"\n: "b\u2028c\\n"}\n',
    "list": '\n [{"text": "a"},\n {"text": "b\u2028c\\n"}]\n',
    "list of texts": '["a", "b\u2028c\\n"]',
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_layouts_and_encodings_of_json(layout: str, encoding: str) -> None:
    Path("x.json").write_bytes(LAYOUTS[layout].encode(encoding))
    assert [*read("x.json")[0].values()] == ["a", "b\u2028c\n"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1), st.booleans())
def test_json_comes_back(texts: list[str], ascii_only: bool) -> None:
    Path("x.jsonl").write_text(
        "".join(json.dumps({"text": t}, ensure_ascii=ascii_only) + "\n" for t in texts), encoding="utf-8", newline=""
    )
    assert [row.value for row in json_rows(Path("x.jsonl"), "text")] == texts


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_keeps_its_line_ends(encoding: str) -> None:
    Path("x.txt").write_bytes("é\r\nb\rc\n".encode(encoding))
    assert read("x.txt", "text")[0] == {"x.txt": "é\r\nb\rc\n"}
    assert [*read("x.txt", "text", separator="re:\\n")[0].values()] == ["é\r", "b\rc"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("separator", ["\n\n", "\\n\\n", "\r\n\r\n"])
def test_a_line_break_of_a_separator_is_one_of_windows_too(end: str, separator: str) -> None:
    lines = ["a", "b\rc", "", "d", "", "", "e.", ""]
    Path("x.txt").write_bytes(end.join(lines).encode())
    whole = end == "\n" and "\r" in separator  # which says that it means no other
    parts = [end.join(lines)] if whole else [f"a{end}b\rc", "d", f"{end}e.{end}"]
    assert [*read("x.txt", "text", separator=separator)[0].values()] == parts


def test_compressed_files() -> None:
    text = b'{"text": "a"}\n'
    Path("in").mkdir()
    for name, content in {"a.jsonl.gz": gzip.compress(text), "b.json": bz2.compress(text)}.items():
        Path("in", name).write_bytes(content)
    assert read("in")[0] == {"a.jsonl.gz#0": "a", "b.json#0": "a"}


BAD = {
    "cut.jsonl.gz": (gzip.compress(b'{"text": "a"}\n' * 999)[:-20], "Compressed file ended before"),
    "flipped.jsonl.gz": (gzip.compress(b'{"text": "a"}\n' * 999)[:-6] + b"abcdef", "CRC check failed"),
    "plain.jsonl.gz": (b'{"text": "a"}\n', "Not a gzipped file"),
    "x.jsonl": (b'{"text": "a"}\n{"text": "b\xff"}\n', r"line 2, is not UTF-8 text"),
    "y.jsonl.gz": (gzip.compress(b'{"text": "a"}\n\xff\n'), r"line 2, is not UTF-8 text"),
    "both.jsonl.gz": (gzip.compress(b"\xff" * 9_000)[:-6] + b"abcdef", "is not UTF-8 text"),
    "half.jsonl": (b'{"text": "a"}\n{"text": "b"', r"line 2: not JSON: Expecting ','"),
    "deep.jsonl": (b'{"text": "a"}\n{"meta": ' + b"[" * 100_000, r"line 2: not JSON that can be read: too deep"),
    "twice.jsonl": (b'{"text": "a"}\n{"text": "a", "text": "b"}', r"line 2: 'text' is written twice"),
    "twice.json": (b'[{"text": "a"},\n{"text": "a", "text": "b"}]', r"line 1: 'text' is written twice"),
    "escaped.jsonl": (b'{"te\\u0078t": "a", "text": "b"}', r"line 1: 'text' is written twice"),
    "broken.jsonl": (b'{"text": "a"}\n{"text" "b"}\n{"text": "c"}', r"line 2: not JSON: Expecting ':'"),
    "z.jsonl": (b"\x28\xb5\x2f\xfd....", r"compressed \(zstd\): decompress it"),
    "x.parquet": (b"PAR1 and no more", r"\(parquet\) cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_message_and_nothing_is_left(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    content, says = BAD[name]
    kind = "parquet" if name.endswith("parquet") else "json"
    Path(name).write_bytes(content)
    with pytest.raises(InputError, match=says):
        read(name, kind)
    assert main(["data", "prepare", "out", "--kind", kind, "--path", name]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert name in error
    assert [*Path().iterdir()] == [Path(name)]


def test_a_damaged_page_of_parquet() -> None:
    pq.write_table(pa.table({"text": [f"row {i} " * 50 for i in range(400)]}), "x.parquet", compression="zstd")
    content = bytearray(Path("x.parquet").read_bytes())
    content[40:400] = bytes(360)
    Path("x.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"'x\.parquet' \(parquet\) cannot be read"):
        read("x.parquet", "parquet")


def test_prepare_ends_with_one_line_a_source(capsys: pytest.CaptureFixture[str]) -> None:
    rows("in/a.jsonl", *"abcdefgh", "", None)
    rows("in/b.jsonl.zst", "x")
    assert main(["data", "prepare", "out", "--kind", "json", "--path", "in", "--json", "out.json"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == (
        "in: files 1, documents 8, bytes 8, tokens 16; left out: files of .zst: 1 (b.jsonl.zst), "
        "empty rows: 1 (a.jsonl, line 9), rows without text: 1 (a.jsonl, line 10)"
    )
    source = json.loads(Path("out.json").read_text())["source"]
    assert [part["count"] for part in source["left_out"]] == [1, 1, 1]
    assert main(["data", "prepare", "new", "--kind", "json", "--path", "in", "--strict"]) == 2
    assert "data.source.strict: 'in' is not read as a whole; left out: files of .zst: 1" in capsys.readouterr().err
    assert main(["data", "prepare", "new", "--kind", "json", "--path", "in", "--json", "no/x.json"]) == 2
    assert not Path("new").exists()


def test_strict_shards_are_whole() -> None:
    rows("in/a.jsonl", "a", "b", "")
    loose = SourceConfig(kind="json", path="in")
    strict = SourceConfig(kind="json", path="in", strict=True)
    settings = ShardSettings()
    assert cache_name(loose, ByteTokenizer(), settings) == cache_name(strict, ByteTokenizer(), settings)
    meta = prepare_source(Path("out"), loose, ByteTokenizer(), settings)
    assert read_meta(Path("out")) == meta
    assert "empty rows: 1" in summary(loose, meta)
    with pytest.raises(InputError, match=r"data\.source\.strict.*empty rows: 1"):
        prepare_source(Path("out"), strict, ByteTokenizer(), settings)
    written = json.loads(Path("out/meta.json").read_text())
    del written["account"]  # as earlier versions wrote it
    Path("out/meta.json").write_text(json.dumps(written))
    assert prepare_source(Path("out"), loose, ByteTokenizer(), settings).fingerprint == meta.fingerprint
    with pytest.raises(InputError, match=r"data\.source\.strict: 'out' does not say what was left out"):
        prepare_source(Path("out"), strict, ByteTokenizer(), settings)


def test_the_account_begins_anew_with_each_reading() -> None:
    rows("x.jsonl", "a", "", "b")
    account = Account()

    def again() -> Iterator[int]:
        for _ in range(2):
            yield sum(1 for _ in documents(SourceConfig(kind="json", path="x.jsonl"), account))

    assert [*again()] == [2, 2]
    assert (account.files, account.documents, account.left_out.total()) == (1, 2, 1)
