"""Text to token ids and back. A tokenizer's `state()` is the whole of it, as strings: it travels in checkpoints.

Neither torch nor Lightning is imported here, and `tokenizers` only where such a tokenizer is used.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mtp_lightning.errors import InputError, did_you_mean

END_OF_TEXT = "<|endoftext|>"
"""The end-of-document token of the tokenizers trained here."""
EOS_NAMES = (
    END_OF_TEXT, "</s>", "<eos>", "<|end_of_text|>", "<|eos|>", "<|im_end|>", "<|eot_id|>", "<EOS>", "[EOS]", "[SEP]",
)  # fmt: skip
"""Where the end-of-document token is looked for, first name first: a file does not say which one it is. Special tokens
go before ordinary ones, whatever their names: a text can write the others."""

_NOBODYS = "\U000f1d1e"
"""A character that no vocabulary has."""
_BROKEN = "\ufffd"
"""What decoders put in the place of a part of a character."""


MOST_TOKENS = 2**24
"""Ids that a vocabulary may have: more is a mistake in the file, and every table over ids would be as long."""


@runtime_checkable
class Tokenizer(Protocol):
    """What the platform needs of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""

    @property
    def eos_id(self) -> int:
        """The end of a document, which belongs to it. Never the result of `encode`."""

    @property
    def fingerprint(self) -> str:
        """A short hash of `state()`: equal for tokenizers that do the same."""

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: nothing put before or after it, special tokens' names read as ordinary text."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, in parallel where the tokenizer can."""

    def encode_rendered(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of texts that a chat template wrote, where the names of special tokens mean these tokens."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text, for any ids: a part of a character becomes U+FFFD, the end of a document nothing."""

    def settled(self, ids: Sequence[int]) -> str:
        """The beginning of `decode(ids)` that no further token changes."""

    def state(self) -> dict[str, str]:
        """Everything `tokenizer_from_state` needs."""

    def __hash__(self) -> int:
        """By identity: tables over all tokens are made once for each."""


class ByteTokenizer:
    """A token is a byte of UTF-8, so V = 256 and no text is out of vocabulary.

    The end of a document is byte 255: 0xFF never occurs in UTF-8, so it needs no 257th symbol.

    Args:
        infilling: with three tokens more, 256 to 258, that no text can write: what comes next is the prefix, the
            suffix, the middle.
    """

    vocab_size = 256
    eos_id = 255
    sentinel_ids: tuple[int, ...] = ()

    def __init__(self, infilling: bool = False) -> None:
        if infilling:
            self.sentinel_ids, self.vocab_size = (256, 257, 258), 259

    def encode(self, text: str) -> list[int]:
        # Lone surrogates (a file name or argument that was not UTF-8) have no UTF-8 form: "?" stands for them.
        return list(text.encode("utf-8", errors="replace"))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def encode_rendered(self, texts: Sequence[str]) -> list[list[int]]:
        return self.encode_batch(texts)  # it has no special tokens that have names

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < self.eos_id).decode("utf-8", errors="replace")

    def settled(self, ids: Sequence[int]) -> str:
        return self.decode(ids).rstrip(_BROKEN)

    def state(self) -> dict[str, str]:
        return {"kind": "bytes"} | ({"infilling": "true"} if self.sentinel_ids else {})

    @property
    def fingerprint(self) -> str:
        return _fingerprint(self.state())


class HuggingFaceTokenizer:
    """A `tokenizer.json` of the `tokenizers` library.

    Args:
        serialized: the content of the file.
        origin: what error messages call it.
        end_token: the end of a document; None looks for a usual name.
        needs_end: False where texts alone are encoded: without an end of a document `eos_id` is -1.

    Raises:
        InputError: not such a file; no end-of-document token, or one that a text can write.
    """

    def __init__(
        self, serialized: str, origin: str = "tokenizer.json", end_token: str | None = None, needs_end: bool = True
    ) -> None:
        self._read(serialized, origin)
        self.end_token, self.eos_id = "", -1
        try:
            self._find_end(origin, end_token)
        except InputError:
            if needs_end:
                raise

    def _find_end(self, origin: str, end_token: str | None) -> None:
        name = _end_token(self._vocabulary, self._special, origin) if end_token is None else end_token
        if name not in self._vocabulary:
            raise InputError(
                f"data.end_token: '{origin}' has no token '{name}'{did_you_mean(name, [*self._special, *EOS_NAMES])}"
            )
        eos_id = self._vocabulary[name]
        if eos_id in self.encode(f"{name} {name}{_NOBODYS} {_NOBODYS}"):
            others = ", ".join(token for token in self._special if token != name)
            raise InputError(
                f"data.end_token: '{name}' of '{origin}' is a token that a text can write (an ordinary one, or the one "
                f"for what is unknown), and would end a document in its middle; its special tokens are {others or name}"
            )
        self.end_token, self.eos_id = name, eos_id

    @classmethod
    def saved(cls, state: Mapping[str, str]) -> "HuggingFaceTokenizer":
        """Out of a checkpoint, whose model has learned what its end of a document is: nothing is checked."""
        self = cls.__new__(cls)
        self._read(state["json"], "the saved tokenizer")
        self.end_token = state.get("end_token") or _first_name(self._vocabulary, "the saved tokenizer")
        self.eos_id = self._vocabulary[self.end_token]
        return self

    def _read(self, serialized: str, origin: str) -> None:
        # Where this is set, `tokenizers` does not warn at every fork; data loader workers fork and never tokenize.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        import tokenizers

        self._serialized = serialized
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_str(serialized)
        except Exception as error:  # the library raises plain Exception
            raise InputError(f"data.tokenizer: '{origin}' is not a tokenizer.json: {error}") from error
        # Settings of fine-tuning that files carry along: they would cut long documents, or pad short ones, silently.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # A document about "</s>" is not the end of a document.
        self._tokenizer.encode_special_tokens = True
        self._vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = [token.content for _, token in sorted(added.items()) if token.special]
        self.vocab_size = max(self._vocabulary.values(), default=-1) + 1
        """Can be more than the number of tokens: ids may have gaps."""
        if self.vocab_size > MOST_TOKENS:
            raise InputError(
                f"data.tokenizer: '{origin}' has a token of id {self.vocab_size - 1}: at most {MOST_TOKENS}"
            )

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(without_surrogates(text), add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch([without_surrogates(t) for t in texts], add_special_tokens=False)
        return [list(encoding.ids) for encoding in encodings]

    def encode_rendered(self, texts: Sequence[str]) -> list[list[int]]:
        self._tokenizer.encode_special_tokens = False
        try:
            return self.encode_batch(texts)
        finally:
            self._tokenizer.encode_special_tokens = True

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode([i for i in ids if i != self.eos_id], skip_special_tokens=True))

    def settled(self, ids: Sequence[int]) -> str:
        whole, byte = self.decode(ids), self._vocabulary.get("<0xFF>")
        if byte is not None:
            # Bytes that stand for characters are decoded together: one that never fits makes all before it unreadable.
            same = takewhile(lambda pair: pair[0] == pair[1], zip(whole, self.decode([*ids, byte])))
            whole = "".join(character for character, _ in same)
        return whole.rstrip(_BROKEN)

    def state(self) -> dict[str, str]:
        """The end token only where it is not the first of `EOS_NAMES`, which earlier versions always took."""
        state = {"kind": "huggingface", "json": self._serialized}
        usual = next((name for name in EOS_NAMES if name in self._vocabulary), None)
        return state if self.end_token == usual else {**state, "end_token": self.end_token}

    @property
    def fingerprint(self) -> str:
        return _fingerprint(self.state())


def begin_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids that the file itself puts before every text (Llama's <s>): its model has never seen a text without. `encode`
    gives texts alone, so these go before a prompt, and before a question with its answer."""
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return []
    whole: list[int] = tokenizer._tokenizer.encode("a").ids
    plain = tokenizer.encode("a")
    start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    return whole[:start]


def encode_after(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text that goes on from another: `encode`, without the space that some tokenizers (Llama 2's, Code
    Llama's) put before every text. One that cannot write an anchor before it keeps the space."""
    for anchor, before in _anchors(tokenizer):
        ids = tokenizer.encode(anchor + text)
        if ids[: len(before)] == before:
            return ids[len(before) :]
    return tokenizer.encode(text)


@lru_cache(maxsize=4)
def _anchors(tokenizer: Tokenizer) -> list[tuple[str, list[int]]]:
    """Texts with their ids that another may be encoded after; none where texts encoded apart join as they are."""
    lone = tokenizer.encode("a")
    if tokenizer.decode([*lone, *lone]) == "aa":
        return []
    known = [(anchor, tokenizer.encode(anchor)) for anchor in ("\u263a", "\n", ".")]  # rarely parts of longer tokens
    return [(anchor, ids) for anchor, ids in known if tokenizer.decode(ids).lstrip(" ") == anchor]


def _first_name(vocabulary: Mapping[str, int], origin: str) -> str:
    name = next((name for name in EOS_NAMES if name in vocabulary), None)
    if name is None:
        raise InputError(
            f"data.tokenizer: '{origin}' has no end-of-document token under any usual name ({', '.join(EOS_NAMES)}); "
            "name it by data.end_token, add one to its added_tokens, or train one with `mtp data train-tokenizer`"
        )
    return name


def _end_token(vocabulary: Mapping[str, int], special: Sequence[str], origin: str) -> str:
    """
    Raises:
        InputError: none has a usual name.
    """
    return next((name for name in EOS_NAMES if name in special), None) or _first_name(vocabulary, origin)


def load_tokenizer(spec: str, end_token: str | None = None, needs_end: bool = True) -> Tokenizer:
    """`bytes`, or the path of a `tokenizer.json` or of the folder that holds it.

    Args:
        end_token: the end of a document; None looks for a usual name.
        needs_end: as `HuggingFaceTokenizer` has it.

    Raises:
        InputError: neither of these; an end of a document that is not one token, or that a text can write.
    """
    if spec == "bytes":
        if end_token is not None:
            raise InputError("data.end_token goes with a tokenizer.json: of data.tokenizer = 'bytes' it is byte 255")
        return ByteTokenizer()
    path = Path(spec).expanduser()
    if path.is_dir():
        path /= "tokenizer.json"
    try:
        serialized = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(
            f"data.tokenizer: there is no file '{path}'; give 'bytes' or the path of a tokenizer.json"
            f"{did_you_mean(spec, ['bytes'])}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data.tokenizer: cannot read '{path}' as a tokenizer.json: {error}") from error
    return HuggingFaceTokenizer(serialized, str(path), end_token, needs_end)


def tokenizer_from_state(state: Mapping[str, str]) -> Tokenizer:
    """The tokenizer whose `state()` this is.

    Raises:
        InputError: a kind that this version does not know.
    """
    kind = state.get("kind")
    if kind == "bytes":
        return ByteTokenizer(infilling="infilling" in state)
    if kind == "huggingface":
        return HuggingFaceTokenizer.saved(state)
    raise InputError(f"the saved tokenizer is of kind {kind!r}; this version knows 'bytes' and 'huggingface'")


def _fingerprint(state: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(state), sort_keys=True).encode()).hexdigest()[:16]


def without_surrogates(text: str) -> str:
    """The text with "?" for lone surrogates, halves of a character that JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", errors="replace").decode("utf-8")
