"""How many bytes of text a token stands for, so that bits per byte count the bytes of the very tokens scored."""

import json
import re
from typing import Any

from mtp_lightning.data.tokens.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def token_bytes(tokenizer: Tokenizer) -> list[int]:
    """UTF-8 bytes of each token id, in the middle of a text; 0 for the end of a document, special tokens and ids that
    no token has.

    The sum over `encode(text)` is the text's length in bytes for tokenizers that lose nothing (bytes, byte-level BPE,
    byte fallback), but for the space that some put before a text's first word. For those that do lose something
    (lower case, white space), it is the length of what they read.
    """
    state = tokenizer.state()
    if state["kind"] == "bytes":
        return [int(i < tokenizer.eos_id) for i in range(tokenizer.vocab_size)]
    content = json.loads(state["json"])
    added = {token["id"]: token for token in content.get("added_tokens", [])}
    names = {i: name for name, i in _vocabulary(content["model"]).items()} | {i: t["content"] for i, t in added.items()}
    decoders = _types(content.get("decoder"))
    anchor = next((i for i, name in names.items() if i not in added and name.isascii() and name.isalnum()), None)

    def size(i: int) -> int:
        if i not in names or i == tokenizer.eos_id or (i in added and added[i]["special"]):
            return 0
        name = names[i]
        if i in added:
            return len(name.encode())
        if "ByteLevel" in decoders:
            return len(name)  # a character stands for each byte
        if "ByteFallback" in decoders and _BYTE.fullmatch(name):
            return 1
        if anchor is None:
            return len(tokenizer.decode([i]).encode())
        return len(tokenizer.decode([anchor, i]).encode()) - len(tokenizer.decode([anchor]).encode())

    return [size(i) for i in range(tokenizer.vocab_size)]


def _vocabulary(model: dict[str, Any]) -> dict[str, int]:
    """Token -> id; a Unigram model lists its tokens with their scores instead."""
    vocabulary = model["vocab"]
    return vocabulary if isinstance(vocabulary, dict) else {entry[0]: i for i, entry in enumerate(vocabulary)}


def _types(decoder: dict[str, Any] | None) -> set[str]:
    """The kinds of a decoder and of its parts."""
    if decoder is None:
        return set()
    return {decoder["type"]}.union(*map(_types, decoder.get("decoders", [])))
