"""What text a token stands for: bits per byte count the bytes of the very tokens scored, and a token of another
vocabulary is known by its bytes."""

import json
import re
from functools import lru_cache
from typing import Any

from mtp_lightning.data.tokens.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@lru_cache(maxsize=4)  # of large vocabularies a second each
def token_bytes(tokenizer: Tokenizer) -> tuple[int, ...]:
    """UTF-8 bytes of each token id, in the middle of a text; 0 for the end of a document, special tokens and ids that
    no token has.

    The sum over `encode(text)` is the text's length in bytes for tokenizers that lose nothing (bytes, byte-level BPE,
    byte fallback, ends of words as GPT-1 marks them), but for the space that some put before a text's first word or
    after its last. For those that do lose something (lower case, white space), it is the length of what they read.
    """
    return tuple(len(text or b"") for text in token_texts(tokenizer))


def token_texts(tokenizer: Tokenizer) -> list[bytes | None]:
    """The bytes of each token id, in the middle of a text; None for those that no text has."""
    state = tokenizer.state()
    if state["kind"] == "bytes":
        return [bytes([i]) if i < tokenizer.eos_id else None for i in range(tokenizer.vocab_size)]
    content = json.loads(state["json"])
    added = {token["id"]: token for token in content.get("added_tokens", [])}
    names = {i: name for name, i in _vocabulary(content["model"]).items()} | {i: t["content"] for i, t in added.items()}
    decoders = _types(content.get("decoder"))
    words = [i for i, name in names.items() if i not in added and name.isalnum()]
    anchor = min(words, key=lambda i: not names[i].isascii(), default=None)
    before = after = 0
    if anchor is not None:
        before = len(tokenizer.decode([anchor]).encode())
        after = len(tokenizer.decode([anchor, anchor]).encode()) - before
    byte_of = {character: byte for byte, character in enumerate(byte_alphabet())}

    def text(i: int) -> bytes | None:
        if i not in names or i == tokenizer.eos_id or (i in added and added[i]["special"]):
            return None
        name = names[i]
        if i in added:
            return str(name).encode()
        if "ByteLevel" in decoders:
            return bytes(byte_of.get(character, ord("?")) for character in name)
        if "ByteFallback" in decoders and (found := _BYTE.fullmatch(name)):
            return bytes.fromhex(found[1])
        if anchor is None:
            return tokenizer.decode([i]).encode()
        # Between two others: decoders leave out the first token's space, or that of the last one's end of a word.
        between = tokenizer.decode([anchor, i, anchor]).encode()
        return between[before : len(between) - after]

    return [text(i) for i in range(tokenizer.vocab_size)]


def byte_alphabet() -> list[str]:
    """The character that stands for each byte in byte-level BPE (GPT-2): itself where it can be seen, or the next one
    from U+0100 on."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in seen else next(others)) for byte in range(256)]


def _vocabulary(model: dict[str, Any]) -> dict[str, int]:
    """Token -> id; a Unigram model lists its tokens with their scores instead."""
    vocabulary = model["vocab"]
    return vocabulary if isinstance(vocabulary, dict) else {entry[0]: i for i, entry in enumerate(vocabulary)}


def _types(decoder: dict[str, Any] | None) -> set[str]:
    """The kinds of a decoder and of its parts."""
    if decoder is None:
        return set()
    return {decoder["type"]}.union(*map(_types, decoder.get("decoders", [])))
