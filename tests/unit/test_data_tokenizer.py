import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from mtp_lightning.data.tokenizers.training import train_bpe
from mtp_lightning.data.tokens.token_bytes import token_bytes
from mtp_lightning.data.tokens.tokenizer import (
    ByteTokenizer,
    HuggingFaceTokenizer,
    load_tokenizer,
    tokenizer_from_state,
)
from mtp_lightning.errors import InputError

TEXTS = ["the cat sat on the mat", "def f(x):\n    return x + 1\n", "naïve café 🙂"] * 10


@pytest.fixture(scope="module")
def bpe_json() -> str:
    return train_bpe(iter(TEXTS), 300)


@pytest.fixture(scope="module")
def bpe(bpe_json: str) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(bpe_json)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_round_trip(text: str) -> None:
    ids = ByteTokenizer().encode(text)
    assert ByteTokenizer().decode(ids) == text
    assert ByteTokenizer().eos_id not in ids


def test_bytes_are_utf8() -> None:
    assert ByteTokenizer().encode("é🙂") == [0xC3, 0xA9, 0xF0, 0x9F, 0x99, 0x82]


@given(st.lists(st.integers(0, 255)))
def test_bytes_decode_anything(ids: list[int]) -> None:
    ByteTokenizer().decode(ids)


def test_decode_of_half_a_character(bpe: HuggingFaceTokenizer) -> None:
    assert ByteTokenizer().decode(ByteTokenizer().encode("a🙂")[:-1]) == "a�"
    assert ByteTokenizer().decode([97, 255, 98]) == "ab"
    assert bpe.decode(bpe.encode("x𝄞")[:-1]).startswith("x�")


@pytest.mark.parametrize("text", ["the cat 🙂\n\n  sat", "中文", "", " leading", "<|endoftext|> is a name"])
def test_bpe_round_trip(bpe: HuggingFaceTokenizer, text: str) -> None:
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    assert bpe.eos_id not in ids
    assert bpe.encode_batch([text, "a"]) == [ids, bpe.encode("a")]
    assert all(0 <= i < bpe.vocab_size for i in ids)


def test_lone_surrogates_are_replaced(bpe: HuggingFaceTokenizer) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        assert tokenizer.decode(tokenizer.encode("a\udc80b")) == "a?b"


def test_state_rebuilds_the_tokenizer(bpe: HuggingFaceTokenizer) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        again = tokenizer_from_state(json.loads(json.dumps(tokenizer.state())))
        assert again.fingerprint == tokenizer.fingerprint
        assert (again.vocab_size, again.eos_id) == (tokenizer.vocab_size, tokenizer.eos_id)
        assert again.encode("the café") == tokenizer.encode("the café")
    assert bpe.fingerprint != ByteTokenizer().fingerprint


def test_truncation_and_padding_of_the_file_are_off(bpe_json: str) -> None:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(bpe_json)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=100)
    assert len(HuggingFaceTokenizer(tokenizer.to_str()).encode("abcdefgh " * 4)) > 4
    assert len(HuggingFaceTokenizer(tokenizer.to_str()).encode("z")) == 1


def test_load_from_file_and_folder(tmp_path: Path, bpe_json: str) -> None:
    (tmp_path / "tokenizer.json").write_text(bpe_json, encoding="utf-8")
    assert load_tokenizer(str(tmp_path)).fingerprint == load_tokenizer(str(tmp_path / "tokenizer.json")).fingerprint
    assert load_tokenizer("bytes").vocab_size == 256


def test_bad_tokenizers(tmp_path: Path, bpe_json: str) -> None:
    with pytest.raises(InputError, match=r"data\.tokenizer: there is no file 'byte'.*did you mean 'bytes'"):
        load_tokenizer("byte")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(InputError, match=r"data\.tokenizer: '.*bad\.json' is not a tokenizer\.json"):
        load_tokenizer(str(tmp_path / "bad.json"))
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"data\.tokenizer: cannot read"):
        load_tokenizer(str(tmp_path / "binary.json"))
    vocabulary = {"</s>": 0, "a": 2**24}
    high = json.dumps({"model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "a"}, "added_tokens": []})
    with pytest.raises(InputError, match="has a token of id 16777216: "):
        HuggingFaceTokenizer(high)
    with pytest.raises(InputError, match="no end-of-document token"):
        HuggingFaceTokenizer(bpe_json.replace("<|endoftext|>", "<|other|>"))
    with pytest.raises(InputError, match="'words'"):
        tokenizer_from_state({"kind": "words"})


WORDS = "the cat sat on the mat, the cats and then a hat is café there"


def shape(name: str, text: str) -> tokenizers.Tokenizer:
    """A tokenizer that loses nothing of texts with single spaces, trained on the text."""
    models, decoders, trainers = tokenizers.models, tokenizers.decoders, tokenizers.trainers
    pre = tokenizers.pre_tokenizers
    known: dict[str, Any] = {"special_tokens": ["</s>", "[UNK]"], "show_progress": False}
    if name == "end of word":  # GPT-1, CLIP
        made = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>"))
        made.pre_tokenizer, made.decoder = pre.WhitespaceSplit(), decoders.BPEDecoder(suffix="</w>")
        trainer = trainers.BpeTrainer(vocab_size=70, end_of_word_suffix="</w>", **known)
    elif name == "word pieces":
        made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.pre_tokenizer, made.decoder = pre.WhitespaceSplit(), decoders.WordPiece(cleanup=False)
        trainer = trainers.WordPieceTrainer(vocab_size=60, **known)
    elif name == "unigram":
        made = tokenizers.Tokenizer(models.Unigram(byte_fallback=True))
        made.pre_tokenizer, made.decoder = pre.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=40, unk_token="[UNK]", **known)
    else:  # Llama 2
        made = tokenizers.Tokenizer(models.BPE())
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        made.pre_tokenizer, made.decoder = pre.Metaspace(), decoders.Sequence(steps)
        trainer = trainers.BpeTrainer(vocab_size=60, **known)
    made.train_from_iterator([text] * 4, trainer)
    return made


@pytest.mark.parametrize("name", ["end of word", "word pieces", "unigram", "spaces"])
@pytest.mark.parametrize("text", [WORDS, "кот сидит на коте и коты 猫 на мате"])  # no ASCII to decode beside
def test_bytes_of_tokens_add_up(name: str, text: str) -> None:
    tokenizer = HuggingFaceTokenizer(shape(name, text).to_str(), needs_end=False)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    one_space = 1  # before the first word or after the last one
    assert sum(token_bytes(tokenizer)[i] for i in ids) == len(text.encode()) + one_space


def test_imports_light() -> None:
    code = (
        "import sys, mtp_lightning.data.tokens.tokenizer, mtp_lightning.data.command\n"
        "print([m for m in ('torch', 'lightning', 'numpy', 'datasets', 'tokenizers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
