"""Text to token ids and back. A tokenizer's `state()` is the whole of it, as strings: it travels in checkpoints.

Neither torch nor Lightning is imported here, and `tokenizers` only where such a tokenizer is used.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mtp_lightning.errors import InputError, did_you_mean

END_OF_TEXT = "<|endoftext|>"
"""The end-of-document token of the tokenizers trained here."""
EOS_NAMES = (
    END_OF_TEXT, "</s>", "<eos>", "<|end_of_text|>", "<|eos|>", "<|im_end|>", "<|eot_id|>", "<EOS>", "[EOS]", "[SEP]",
)  # fmt: skip
"""Where the end-of-document token is looked for, first name first: a file does not say which one it is."""


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

    def decode(self, ids: Sequence[int]) -> str:
        """The text, for any ids: a part of a character becomes U+FFFD, the end of a document nothing."""

    def state(self) -> dict[str, str]:
        """Everything `tokenizer_from_state` needs."""


class ByteTokenizer:
    """A token is a byte of UTF-8, so V = 256 and no text is out of vocabulary.

    The end of a document is byte 255: 0xFF never occurs in UTF-8, so it needs no 257th symbol.
    """

    vocab_size = 256
    eos_id = 255

    def encode(self, text: str) -> list[int]:
        # Lone surrogates (a file name or argument that was not UTF-8) have no UTF-8 form: "?" stands for them.
        return list(text.encode("utf-8", errors="replace"))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i != self.eos_id).decode("utf-8", errors="replace")

    def state(self) -> dict[str, str]:
        return {"kind": "bytes"}

    @property
    def fingerprint(self) -> str:
        return _fingerprint(self.state())


class HuggingFaceTokenizer:
    """A `tokenizer.json` of the `tokenizers` library.

    Args:
        serialized: the content of the file.
        origin: what error messages call it.

    Raises:
        InputError: not such a file, or none of its tokens has a usual end-of-document name.
    """

    def __init__(self, serialized: str, origin: str = "tokenizer.json") -> None:
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
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        """Can be more than the number of tokens: ids may have gaps."""
        name = next((name for name in EOS_NAMES if name in vocabulary), None)
        if name is None:
            raise InputError(
                f"data.tokenizer: '{origin}' has no end-of-document token under any usual name "
                f"({', '.join(EOS_NAMES)}); add one to its added_tokens, or train one with `mtp data train-tokenizer`"
            )
        self.eos_id = vocabulary[name]

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(_without_surrogates(text), add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch([_without_surrogates(t) for t in texts], add_special_tokens=False)
        return [list(encoding.ids) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def state(self) -> dict[str, str]:
        return {"kind": "huggingface", "json": self._serialized}

    @property
    def fingerprint(self) -> str:
        return _fingerprint(self.state())


def load_tokenizer(spec: str) -> Tokenizer:
    """`bytes`, or the path of a `tokenizer.json` or of the folder that holds it.

    Raises:
        InputError: neither of these.
    """
    if spec == "bytes":
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
    return HuggingFaceTokenizer(serialized, origin=str(path))


def tokenizer_from_state(state: Mapping[str, str]) -> Tokenizer:
    """The tokenizer whose `state()` this is.

    Raises:
        InputError: a kind that this version does not know.
    """
    kind = state.get("kind")
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "huggingface":
        return HuggingFaceTokenizer(state["json"], origin="the saved tokenizer")
    raise InputError(f"the saved tokenizer is of kind {kind!r}; this version knows 'bytes' and 'huggingface'")


def _fingerprint(state: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(state), sort_keys=True).encode()).hexdigest()[:16]


def _without_surrogates(text: str) -> str:
    return text.encode("utf-8", errors="replace").decode("utf-8")
