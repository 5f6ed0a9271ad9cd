"""Tokenizers of somebody's model: a SentencePiece model that is trained here, converted; and files that do not fit."""

import shlex
from pathlib import Path

import pytest

from mtp_lightning.data.tokens.tokenizer import (
    ByteTokenizer,
    HuggingFaceTokenizer,
    begin_ids,
    load_tokenizer,
    tokenizer_from_state,
)
from mtp_lightning.errors import InputError
from mtp_lightning.interop.importing.tokenizers import converted, find_tokenizer, run_flags

sentencepiece = pytest.importorskip("sentencepiece")

TEXT = [line for line in Path(__file__).read_text().splitlines() if line.strip()] * 4
TEXTS = ["def f(x):\n\treturn  x", "", " ", "  two", "naïve 漢字 🙂", "ﬁ½", "<s>x</s>", "a\r\n\r\nb", "▁x ▁"]


def trained(folder: Path, **settings: object) -> Path:
    options = {"vocab_size": 400, "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
               "remove_extra_whitespaces": False, "minloglevel": 2, "allow_whitespace_only_pieces": True,
               "split_digits": True} | settings  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT), model_prefix=str(folder / "tokenizer"), **options
    )
    return folder / "tokenizer.model"


def test_it_does_what_sentencepiece_does(tmp_path: Path) -> None:
    path = trained(tmp_path)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = find_tokenizer(tmp_path, None, None, 512)
    assert ours is not None
    assert "FOLDER --data.end_token '</s>', where `mtp export`" in run_flags(tmp_path, None, ours)
    assert (ours.vocab_size, ours.eos_id) == (400, theirs.eos_id())
    for text in [*TEXTS, *TEXT[:20]]:
        assert ours.encode(text) == theirs.encode(text), text
        if "<s>" not in text and "▁" not in text:
            assert ours.decode(ours.encode(text)) == text
    assert begin_ids(ours) == [theirs.bos_id()]
    assert begin_ids(ByteTokenizer()) == []
    assert tokenizer_from_state(ours.state()).encode(TEXTS[0]) == theirs.encode(TEXTS[0])


@pytest.mark.parametrize(
    "settings",
    [{"model_type": "unigram"}, {"normalization_rule_name": "nmt_nfkc"}, {"add_dummy_prefix": False}],
    ids=str,
)
def test_what_would_not_be_the_same_is_refused(settings: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be converted exactly"):
        converted(trained(tmp_path, **settings))


def test_what_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(InputError, match="is no SentencePiece model"):
        find_tokenizer(tmp_path, None, None, 512)
    with pytest.raises(InputError, match=r"there is no file .*; give 'bytes'"):
        find_tokenizer(tmp_path, str(tmp_path / "none.json"), None, 512)
    assert find_tokenizer(tmp_path, "none", None, 512) is None


def test_a_tokenizer_json_is_taken_as_it_is_with_the_end_that_its_config_names(tmp_path: Path) -> None:
    trained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(converted(tmp_path / "tokenizer.model"))
    (tmp_path / "tokenizer.model").write_bytes(b"not looked at")
    found = find_tokenizer(tmp_path, None, None, 400)
    assert found is not None
    assert found.state()["json"] == (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<s>"}}')
    named = find_tokenizer(tmp_path, None, None, 400)
    assert isinstance(named, HuggingFaceTokenizer)
    assert named.end_token == "<s>"
    words = shlex.split(run_flags(tmp_path, None, named))
    assert words[::2] == ["--data.tokenizer", "--data.end_token"]
    assert load_tokenizer(words[1], words[3]).state() == named.state()
    assert load_tokenizer(str(tmp_path)).eos_id == found.eos_id != named.eos_id
    with pytest.raises(InputError, match="has ids up to 399, and the model's embedding 399 rows"):
        find_tokenizer(tmp_path, None, None, 399)
    with pytest.raises(InputError, match=r"--end_token: .* has no token 'nothing'"):
        find_tokenizer(tmp_path, None, "nothing", 400)
