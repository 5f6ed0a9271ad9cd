"""Tokenizers made here: pieces, texts, mixtures they are trained on; and what tokenizers are compared by."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from mtp_lightning.cli import main
from mtp_lightning.data.corpora.account import Account
from mtp_lightning.data.corpora.source import SourceConfig
from mtp_lightning.data.mixtures.sources import MixtureSource
from mtp_lightning.data.tokenizers.comparing import draw, measure_tokenizers, rows_of
from mtp_lightning.data.tokenizers.training import Digits, PreTokenization, mixed_texts, train_bpe
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer, HuggingFaceTokenizer
from mtp_lightning.errors import InputError

CODE = [
    "def name_1(self, value=1234567):\r\n\treturn self.items[value] + 12\n\n\nclass Größe:  # don't\n    y = 3.14159\n",
    "for i in range(100000):\n    print(i, 20242025, end='')\n" * 3,
] * 20
SCHEMES: tuple[PreTokenization, ...] = get_args(PreTokenization)
MADE = {
    (scheme, digits): train_bpe(iter(CODE), 420, scheme, digits) for scheme in SCHEMES for digits in get_args(Digits)
}


def made(scheme: PreTokenization, digits: Digits = "own") -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(MADE[scheme, digits])


def tokens_of(tokenizer: HuggingFaceTokenizer) -> list[str]:
    """Every token that is whole characters, as text."""
    texts = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    return [text for text in texts if text and "\ufffd" not in text]


@pytest.mark.parametrize("digits", get_args(Digits))
@pytest.mark.parametrize("scheme", SCHEMES)
@given(text=st.text(max_size=60))
def test_every_text_comes_back(scheme: PreTokenization, digits: Digits, text: str) -> None:
    tokenizer = made(scheme, digits)
    for one in (text, CODE[0], "\t\r\n\r\n  x\u2028y \n", "１２３ 四五"):
        assert tokenizer.decode(tokenizer.encode(one)) == one


@pytest.mark.parametrize(
    ("scheme", "digits", "never"),
    [
        ("gpt2", "own", r"[^\W\d_]\d|\S\s+\S|\w\("),
        ("gpt4", "own", r"\d{4}|\w\(|\d[^\d]|[^\d]\d"),
        ("punct", "own", r"\d.|[^\w\s].|.[^\w\s]|_."),
        ("lines", "own", r"[\r\n][^\r\n]"),
        ("gpt2", "single", r"\d.|.\d"),
        ("gpt2", "groups", r"\d{4}|\d[^\d]|[^\d]\d"),
        ("lines", "single", r"\d.|.\d"),
        ("none", "single", r"\d.|.\d"),
        ("gpt4", "whole", r"\w\(|\d[^\d]|[^\d]\d"),
        ("punct", "whole", r"\d[^\d]|[^\d]\d|[^\w\s].|.[^\w\s]|_."),
    ],
)
def test_no_token_crosses_what_divides_pieces(scheme: PreTokenization, digits: Digits, never: str) -> None:
    crossing = [token for token in tokens_of(made(scheme, digits)) if re.search(never, token, re.DOTALL)]
    assert crossing == []


def test_schemes_do_divide_differently() -> None:
    """Each forbids what another makes: the table above is not empty of cases."""
    longest = {scheme: max(map(len, tokens_of(made(scheme)))) for scheme in SCHEMES}
    assert longest["lines"] > longest["gpt4"] > 3
    assert any(re.search(r"\d{4}", token) for token in tokens_of(made("gpt2")))
    assert any(re.search(r"\d{4}", token) for token in tokens_of(made("gpt4", "whole")))
    assert any(re.search(r"\d{2}", token) for token in tokens_of(made("punct", "whole")))
    assert any(re.search(r"\n[^\r\n]", token) for token in tokens_of(made("none")))
    assert MADE["llama3", "own"] == MADE["gpt4", "own"]
    assert any(re.search(r"\w\(", token) for token in tokens_of(made("lines")))


def test_the_plain_one_is_what_it_was() -> None:
    """Shards and models go by its fingerprint."""
    described = json.loads(MADE["gpt2", "own"])
    assert described["pre_tokenizer"] == {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True,
    }  # fmt: skip
    assert train_bpe(iter(CODE), 420) == MADE["gpt2", "own"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_other_libraries_read_it(scheme: PreTokenization, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    for digits in get_args(Digits):
        file = tmp_path / f"{digits}.json"
        file.write_text(MADE[scheme, digits])
        theirs, fast = tokenizers.Tokenizer.from_file(str(file)), PreTrainedTokenizerFast(tokenizer_file=str(file))
        for text in CODE[:2]:
            ours = made(scheme, digits).encode(text)
            assert ours == theirs.encode(text).ids == fast(text)["input_ids"]


def test_a_mixture_gives_bytes_in_proportion(tmp_path: Path) -> None:
    """Until the first source ends; a source of weight 0 gives nothing."""
    for name, length, count in (("long", 40, 60), ("short", 10, 200), ("none", 10, 20)):
        (tmp_path / f"{name}.txt").write_text("\n".join([name[0] * length] * count))
    mixture = [
        MixtureSource(SourceConfig("text", str(tmp_path / f"{name}.txt"), separator="\\n"), weight=weight)
        for name, weight in (("long", 3.0), ("short", 1.0), ("none", 0.0))
    ]
    accounts = {part.label: Account() for part in mixture}
    texts = list(mixed_texts(mixture, accounts))
    sizes = {letter: sum(len(text) for text in texts if text[0] == letter) for letter in "lsn"}
    assert sizes["l"] == 2400
    assert abs(sizes["s"] - 800) <= 40
    assert sizes["n"] == 0
    assert accounts["long"].documents == 60
    with pytest.raises(InputError, match="'long' has epochs"):
        list(mixed_texts([MixtureSource(mixture[0].source, epochs=1.0)], accounts))


def test_half_a_character_is_read_as_it_is_encoded(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "half \\ud83d of it"}\n')
    (text,) = mixed_texts([MixtureSource(SourceConfig("json", str(tmp_path / "a.jsonl")))])
    tokenizer = HuggingFaceTokenizer(train_bpe(iter([text] * 9), 264))
    assert tokenizer.encode(text) == tokenizer.encode("half \ud83d of it")
    assert text == "half ? of it"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("data train-tokenizer new.json --json ./new.json", "json: './new.json' is out too"),
        ("data train-tokenizer new.json --kind text --path here.txt --json here.txt", "is path too"),
        ("data compare-tokenizers bytes here.txt --json here.txt", "is the tokenizer 'here.txt' too"),
        ("data compare-tokenizers bytes --json new --picture new", "picture: 'new' is json too"),
        ("data prepare new --json new", "is out too"),
        ("data prune --by length --fraction 0.5 --out new --json new.parquet", "is the record of out too"),
        ("data plant new --json link/new", "is out too"),
        ("data corruptions --ckpt here.txt --json here.txt", "is ckpt too"),
        ("data sample here.txt --prompts a.txt --out new --json new", "is out too"),
        ("evaluate score here.txt --task humaneval --data b --json here.txt", "is samples too"),
        ("evaluate score a --task humaneval --data b --json new --details new", "details: 'new' is json too"),
        ("evaluate humaneval here.txt --data here.txt --json here.txt", "is ckpt too"),
        ("evaluate induction here.txt --out new --json new", "is out too"),
        ("evaluate pairs here.txt --shards x --json here.txt", "is ckpt too"),
        ("generate here.txt --prompt a --json here.txt", "is ckpt too"),
        ("bench decode --ckpts [here.txt] --json here.txt", "is the model 'here.txt' too"),
        ("bench sandbox --data here.txt --json here.txt", "is data too"),
        ("grid plan here.txt --json here.txt", "is grid too"),
        ("grid report here.txt --json here.txt", "is grid too"),
    ],
)
def test_no_report_is_written_over_another_file(
    command: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.txt").write_text("as it was")
    (tmp_path / "link").symlink_to(tmp_path)
    assert main(command.split()) == 2
    assert f"{says}, and would be overwritten: choose another file" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"here.txt", "link"}
    assert (tmp_path / "here.txt").read_text() == "as it was"


def test_figures_are_those_counted_by_hand() -> None:
    bpe = HuggingFaceTokenizer(train_bpe(iter(["aaaa bb"] * 9), 258))
    assert [bpe.decode([i]) for i in bpe.encode("aaaa bb")] == ["aa", "aa", " ", "b", "b"]
    named = {"bytes": ByteTokenizer(), "bpe": bpe}
    found = measure_tokenizers(named, {"one": ["aaaa bb", "é b"], "two": iter(["bb"] * 300)})
    rows = {(row["source"], row["tokenizer"]): row for row in rows_of(found, named, "bytes")}
    one = rows["one", "bpe"]
    assert (one["tokens"], rows["one", "bytes"]["tokens"]) == (5 + 4, 7 + 4)
    assert one["nsl"] == round(9 / 11, 4)
    assert one["bytes_per_token"] == round(11 / 9, 4)
    assert one["fertility"] == round(9 / 4, 3)
    assert one["never_used"] == round(1 - 5 / (bpe.vocab_size - 1), 4)  # aa, space, b, the two bytes of é
    assert {row["nsl"] for (_, name), row in rows.items() if name == "bytes"} == {1.0}
    assert rows["all", "bpe"]["tokens"] == 9 + 600
    assert {row["lossless"] for row in rows.values()} == {1.0}
    assert draw(list(rows.values())).startswith(b"\x89PNG")


def test_a_tokenizer_that_makes_no_token_of_a_text_has_no_figures_there() -> None:
    fast = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "</s>": 2}, []))
    fast.add_special_tokens(["</s>"])
    named = {"bytes": ByteTokenizer(), "ab": HuggingFaceTokenizer(fast.to_str())}
    found = measure_tokenizers(named, {"known": ["ab ba"], "strange": ["xyz"]})
    rows = {(row["source"], row["tokenizer"]): row for row in rows_of(found, named, "bytes")}
    none = rows["strange", "ab"]
    assert [none[key] for key in ("tokens", "bytes_per_token", "nsl", "fertility")] == [0, None, None, None]
    assert rows["known", "ab"]["nsl"] == 0.8
    assert {row["nsl"] for row in rows_of(found, named, "ab") if row["source"] == "strange"} == {None}
    assert draw([*rows.values()]).startswith(b"\x89PNG")


def test_no_end_of_a_document_is_needed_to_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, end in (("own", "<|end|>"), ("usual", "<|endoftext|>")):
        Path(f"{name}.json").write_text(train_bpe(iter(CODE), 300).replace("<|endoftext|>", end))
    Path("a.txt").write_text(CODE[0])
    compare = ["data", "compare-tokenizers", "own.json", "usual.json", "--kind", "text", "--path", "a.txt"]
    assert not main([*compare, "--json", "t.json"]), capsys.readouterr().err
    own, usual = json.loads(Path("t.json").read_text())["rows"]
    assert own["tokens"] == usual["tokens"]
    assert own["never_used"] == round((299 * usual["never_used"] + 1) / 300, 4)
    Path("own.json").write_text("{}")
    assert main(compare) == 2
    assert "'own.json' is not a tokenizer.json" in capsys.readouterr().err


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("\n".join(CODE))
    (tmp_path / "b.txt").write_text("one two three\n" * 50)
    mixture = "[{source: {kind: text, path: a.txt}, weight: 2}, {source: {kind: text, path: b.txt}, name: words}]"
    train = ["data", "train-tokenizer", "punct.json", "--vocab_size", "300", "--pre_tokenization", "punct"]
    assert not main([*train, "--mixture", mixture])
    said = capsys.readouterr().out
    assert "a: files 1, documents 1" in said
    assert "words: files 1" in said
    compare = ["data", "compare-tokenizers", "bytes", "punct.json", "--kind", "text", "--path", "a.txt"]
    assert not main([*compare, "--reference", "punct.json", "--json", "t.json", "--picture", "p.png"])
    rows = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert [row["tokenizer"] for row in rows] == ["bytes", "punct.json"]
    assert rows[1]["nsl"] == 1.0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    table = capsys.readouterr().out
    assert "bytes_per_token" in table
    assert "source" not in table


def status(words: list[str]) -> object:
    try:
        return main(words)
    except SystemExit as ended:
        return ended.code


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train-tokenizer", "new.json", "--vocab_size", "256"], "vocab_size"),
        (["train-tokenizer", "new.json", "--pre_tokenization", "gpt3"], "pre_tokenization"),
        (
            ["train-tokenizer", "new.json", "--kind", "stories", "--mixture", "[{source: {kind: stories}}]"],
            "both given",
        ),
        (["train-tokenizer", "new.json", "--mixture", "[]"], "data.mixture is empty"),
        (["compare-tokenizers"], "compare-tokenizers: which"),
        (["compare-tokenizers", "bytes", "bytes"], "'bytes' is given twice"),
        (["compare-tokenizers", "bytes", "--reference", "byte"], "did you mean 'bytes'"),
        (["compare-tokenizers", "missing.json"], "missing.json"),
        (["compare-tokenizers", "bytes", "--picture", "no/where.png"], "picture: no/where.png cannot be written"),
    ],
)
def test_bad_input_is_one_message(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert status(["data", *words]) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
