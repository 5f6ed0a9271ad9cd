import json
from pathlib import Path

import pytest
from jsonargparse import CLI

from mtp_lightning.data.command import prepare_command
from mtp_lightning.data.tokenizers.commands import train_tokenizer_command
from mtp_lightning.data.tokens.store import TokenStore, read_meta
from mtp_lightning.data.tokens.tokenizer import load_tokenizer
from mtp_lightning.errors import InputError

LINES = [f"line number {i}, and a {'long ' * (i % 3)}story" for i in range(50)]
COMMANDS = {"prepare": prepare_command, "train-tokenizer": train_tokenizer_command}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "lines.txt").write_text("\n".join(LINES))
    return tmp_path / "lines.txt"


def run(*arguments: object) -> None:
    CLI(COMMANDS, args=[str(argument) for argument in arguments], as_positional=False)


def test_train_a_tokenizer_and_prepare_with_it(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ["--kind", "text", "--path", corpus, "--separator", "\\n"]
    tokenizer, shards = tmp_path / "bpe" / "tokenizer.json", tmp_path / "shards"
    run("train-tokenizer", "--out", tokenizer, *source, "--vocab_size", 280, "--json", tmp_path / "t.json")
    assert "set model.backbone.vocab_size: 280" in capsys.readouterr().out
    run("prepare", "--out", shards, *source, "--tokenizer", tokenizer, "--json", tmp_path / "p.json")
    captured = capsys.readouterr()
    assert "vocabulary 280" in captured.out
    assert captured.err == ""

    meta = read_meta(shards)
    assert meta.tokenizer_fingerprint == load_tokenizer(str(tokenizer)).fingerprint
    assert json.loads((tmp_path / "t.json").read_text())["vocab_size"] == 280
    summary = json.loads((tmp_path / "p.json").read_text())
    assert summary["fingerprint"] == meta.fingerprint
    assert [row["split"] for row in summary["splits"]] == ["train", "validation"]
    assert sum(row["documents"] for row in summary["splits"]) == len(LINES)
    assert sum(row["tokens"] for row in summary["splits"]) == sum(len(TokenStore(shards, s)) for s in meta.splits)  # type: ignore[arg-type]
    assert {p.name for p in tmp_path.iterdir()} == {"lines.txt", "bpe", "shards", "t.json", "p.json"}
    assert [p.name for p in tokenizer.parent.iterdir()] == ["tokenizer.json"]


def test_commands_never_overwrite(corpus: Path) -> None:
    with pytest.raises(InputError, match=r"out: '.*' exists already"):
        prepare_command(out=str(corpus.parent))
    with pytest.raises(InputError, match=r"out: '.*' exists already"):
        train_tokenizer_command(out=str(corpus))


def test_where_nothing_can_be_written_no_tokenizer_is_trained(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("mtp_lightning.data.tokenizers.commands.train_bpe")
    with pytest.raises(InputError, match=r"out: '.*lines\.txt' is a file, and has to be a folder"):
        train_tokenizer_command(out=str(corpus / "tokenizer.json"))


def test_bad_input_writes_nothing(corpus: Path) -> None:
    out = str(corpus.parent / "out")
    with pytest.raises(InputError, match="vocab_size is 100: it has to be at least 257"):
        train_tokenizer_command(out=out, vocab_size=100)
    with pytest.raises(InputError, match=r"did you mean 'lines\.txt'"):
        train_tokenizer_command(out=out, kind="text", path=str(corpus.parent / "line.txt"))
    with pytest.raises(InputError, match=r"data\.tokenizer: there is no file"):
        prepare_command(out=out, kind="text", path=str(corpus), tokenizer="nowhere.json")
    with pytest.raises(InputError, match="only one document"):
        prepare_command(out=out, kind="text", path=str(corpus))
    with pytest.raises(InputError, match="only one document"):
        prepare_command(out=f"{corpus.parent}/new/below/out", kind="text", path=str(corpus))
    assert [p.name for p in corpus.parent.iterdir()] == ["lines.txt"]
