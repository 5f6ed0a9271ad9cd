"""What `mtp generate` prints while tokens arrive is the decoded text, for every shape of tokenizer."""

import io
import json
import sys
from collections.abc import Callable
from functools import cache

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from mtp_lightning.data.tokenizers.training import train_bpe
from mtp_lightning.data.tokens.tokenizer import (
    ByteTokenizer,
    HuggingFaceTokenizer,
    Tokenizer,
    encode_after,
    tokenizer_from_state,
)
from mtp_lightning.decoding.command import PLAIN, RED, _Printer
from mtp_lightning.errors import InputError

BYTES = [f"<0x{i:02X}>" for i in range(256)]
WORDS = ["\u2581", "a", "b", "n", "é", "\u2581once", "\u2581upon", "on", "\ufffd", "\u2581b", ".", "'"]


def of(model: models.Model, special: list[str] = ["</s>", "<unk>"], **parts: object) -> str:  # noqa: B006
    tokenizer = tokenizers.Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.add_special_tokens(special)
    return str(tokenizer.to_str())


def fallback() -> str:
    """As Llama 2's: a space before the first word, which the decoder takes away, and bytes for what is unknown."""
    vocabulary = {token: i for i, token in enumerate(["<unk>", *BYTES, *WORDS])}
    return of(
        models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True),
        normalizer=normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]),
        decoder=decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
    )


def unigram(byte_fallback: bool) -> str:
    pieces = [("<unk>", 0.0), *((token, -5.0) for token in BYTES), *((word, -1.0) for word in WORDS)]
    parts = [decoders.ByteFallback(), decoders.Metaspace()] if byte_fallback else [decoders.Metaspace()]
    return of(
        models.Unigram(pieces, unk_id=0, byte_fallback=byte_fallback),
        pre_tokenizer=pre_tokenizers.Metaspace(),
        decoder=decoders.Sequence(parts),
    )


def wordpiece() -> str:
    pieces = ["[UNK]", *"abn.,!'", "once", "##on", "##b", "n't", "'s", "do", "é"]
    return of(
        models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"),
        special=["[SEP]", "[UNK]"],
        pre_tokenizer=pre_tokenizers.Whitespace(),
        decoder=decoders.WordPiece(),
    )


SHAPES: dict[str, Callable[[], Tokenizer]] = {
    "bytes": ByteTokenizer,
    "byte-level BPE": lambda: HuggingFaceTokenizer(train_bpe(iter(["a € 🙂 once upon é"] * 9), 300)),
    "byte fallback": lambda: HuggingFaceTokenizer(fallback()),
    "Unigram": lambda: HuggingFaceTokenizer(unigram(False)),
    "Unigram with bytes": lambda: HuggingFaceTokenizer(unigram(True)),
    "WordPiece": lambda: HuggingFaceTokenizer(wordpiece()),
}


@cache
def tokenizer_of(shape: str) -> Tokenizer:
    return SHAPES[shape]()


def streamed(tokenizer: Tokenizer, prompt: list[int], steps: list[list[int]]) -> tuple[str, str]:
    """What was printed, and what the printer says that the text is."""
    stdout, sys.stdout = sys.stdout, io.StringIO()
    try:
        printer = _Printer(tokenizer, [*prompt], show_drafts=False)
        for step in steps:
            printer.write(step, [])
        printer.finish()
        return sys.stdout.getvalue(), printer.text
    finally:
        sys.stdout = stdout


@pytest.mark.parametrize("shape", SHAPES)
@given(st.data())
def test_any_tokens_at_any_number_a_step(shape: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(shape)
    likely = tokenizer.encode("a €🙂 once é b� 你") or [0]  # whole characters, which chance hardly makes
    tokens = st.sampled_from(likely) | st.integers(0, tokenizer.vocab_size - 1)
    pieces = st.lists(tokens, max_size=4) | st.sampled_from(list(map(tokenizer.encode, ["€", "🙂🙂", " once", "é"])))
    prompt = data.draw(pieces)
    steps = [[token for token in step if token != tokenizer.eos_id] for step in data.draw(st.lists(pieces, max_size=8))]
    expected = tokenizer.decode([*prompt, *(token for step in steps for token in step)])[
        len(tokenizer.decode(prompt)) :
    ]
    for some in (steps, [[token] for step in steps for token in step]):
        assert streamed(tokenizer, prompt, some) == (f"{expected}\n", expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_text_is_printed_as_soon_as_it_is_settled(shape: str) -> None:
    tokenizer = tokenizer_of(shape)
    ids = tokenizer.encode("a b a")
    settled = [tokenizer.settled(ids[: i + 1]) for i in range(len(ids))]
    assert settled == [tokenizer.decode(ids[: i + 1]) for i in range(len(ids))]


@pytest.mark.parametrize("shape", SHAPES)
@given(st.text("ab nn\n.\u263a€'", max_size=6))
def test_a_text_goes_on_without_a_space_of_its_own(shape: str, text: str) -> None:
    tokenizer = tokenizer_of(shape)
    alone, after = tokenizer.encode(text), encode_after(tokenizer, text)
    if shape in ("bytes", "byte-level BPE"):
        assert after == alone
    if shape in ("bytes", "byte-level BPE", "byte fallback"):  # others lose spaces and characters
        assert tokenizer.decode([*tokenizer.encode("a"), *after]) == "a" + text
    if shape in ("Unigram", "Unigram with bytes"):
        assert tokenizer.decode([*tokenizer.encode("a"), *encode_after(tokenizer, "bn b")]) == "abn b"


def test_tokens_that_join_as_they_are_do_not_change() -> None:
    """Whatever stands before them: "(x" is one token, and would be two after a symbol."""
    tokenizer = HuggingFaceTokenizer(train_bpe(iter(["f(x)"] * 9), 258, "gpt4"))
    assert len(tokenizer.encode("(x)")) == 2
    assert encode_after(tokenizer, "(x)") == tokenizer.encode("(x)")


def test_drafts_that_were_rejected_keep_their_space(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = tokenizer_of("byte fallback")
    printer = _Printer(tokenizer, tokenizer.encode("a"), show_drafts=True)
    printer.write(tokenizer.encode("b")[-1:], tokenizer.encode("n"))
    assert capsys.readouterr().out == f"b{RED} n{PLAIN}"


def test_a_run_of_bytes_waits_for_its_end() -> None:
    tokenizer = tokenizer_of("byte fallback")
    euro, first_of_four = tokenizer.encode("a€")[2:], [1 + 0xF0]
    assert tokenizer.decode(euro) == "€"
    assert tokenizer.decode(euro + first_of_four) == "\ufffd" * 4, "one that is cut off makes all of them unreadable"
    assert tokenizer.settled(euro) == ""
    assert tokenizer.settled([*euro, *tokenizer.encode("b")]) == "€ b"


def two_ends(special: bool = True) -> str:
    """`</s>` is an HTML tag, as Gemma has it; documents end with `<eos>`."""
    raw = json.loads(fallback().replace('"</s>"', '"<eos>"'))
    n = len(raw["model"]["vocab"]) + 1
    tag = raw["added_tokens"][-1] | {"id": n, "content": "</s>", "special": False}
    raw["added_tokens"].append(tag)
    for token in raw["added_tokens"]:
        token["special"] = token["special"] and special
    return json.dumps(raw)


def test_special_tokens_go_first() -> None:
    tokenizer = HuggingFaceTokenizer(two_ends())
    assert tokenizer.end_token == "<eos>"
    tag = tokenizer._vocabulary["</s>"]
    assert tag in tokenizer.encode("a</s>b")
    assert tokenizer.eos_id not in tokenizer.encode("a</s>b<eos>")
    assert tokenizer.decode([tokenizer.eos_id]) == ""
    again = tokenizer_from_state(tokenizer.state())
    assert (again.eos_id, again.fingerprint) == (tokenizer.eos_id, tokenizer.fingerprint)
    assert HuggingFaceTokenizer(two_ends(), end_token="<eos>").fingerprint == tokenizer.fingerprint


def test_checkpoints_keep_the_end_that_they_were_trained_with() -> None:
    """Earlier versions took the first usual name, special or not, and saved no other."""
    old = tokenizer_from_state({"kind": "huggingface", "json": two_ends()})
    assert old.decode([old.eos_id]) == ""
    assert old.eos_id == HuggingFaceTokenizer(two_ends())._vocabulary["</s>"]
    assert "end_token" not in HuggingFaceTokenizer(fallback()).state(), "its fingerprint is the one it had"


@pytest.mark.parametrize(
    ("serialized", "end_token", "says"),
    [
        (two_ends(), "</s>", "'</s>' of 'tokenizer.json' is a token that a text can write.*special tokens are <unk>"),
        (two_ends(special=False), None, "a token that a text can write"),
        (two_ends(), "<eoz>", "has no token '<eoz>'; did you mean '<eos>'"),
        (two_ends(), "", "has no token ''"),
        (fallback().replace('"</s>"', '"<stop>"'), None, "no end-of-document token under any usual name.*end_token"),
        (of(models.WordLevel({"a": 0, "</s>": 1}, unk_token="</s>"), ["</s>"]), None, "the one for what is unknown"),
    ],
)
def test_an_end_that_a_text_can_write_is_refused(serialized: str, end_token: str | None, says: str) -> None:
    with pytest.raises(InputError, match=f"end_token.*{says}" if "usual" not in says else says):
        HuggingFaceTokenizer(serialized, end_token=end_token)


def test_any_special_token_may_be_named() -> None:
    tokenizer = HuggingFaceTokenizer(fallback().replace('"</s>"', '"<stop>"'), end_token="<stop>")
    assert tokenizer.eos_id not in tokenizer.encode("<stop>")
    assert tokenizer_from_state(tokenizer.state()).eos_id == tokenizer.eos_id
