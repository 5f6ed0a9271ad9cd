"""Byte-level BPE tokenizers of a chosen size, whose merges stay inside the pieces of a chosen pre-tokenization.

What pieces there are decides how much text a token holds, and what tokens mean (Dagan et al. 2024, arXiv 2402.01035).
`tokenizers` is imported where one is trained.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from mtp_lightning.data.corpora.account import Account
from mtp_lightning.data.corpora.documents import documents
from mtp_lightning.data.corpora.source import SourceConfig
from mtp_lightning.data.mixtures.sources import MixtureSource, weight_at
from mtp_lightning.data.preparing.chunks import split_position, split_threshold
from mtp_lightning.data.tokens.tokenizer import END_OF_TEXT, MOST_TOKENS, without_surrogates
from mtp_lightning.data.transforms.infilling import NAMES, SentinelNames
from mtp_lightning.errors import InputError
from mtp_lightning.ranges import Range

PreTokenization = Literal["gpt2", "gpt4", "llama3", "punct", "lines", "none"]
"""`gpt2`: words with the space before them, numbers, runs of symbols. `gpt4`, and `llama3`, which is the same: a letter
may have a symbol before it, numbers are of three digits, symbols take line breaks along. `punct`: symbols and digits
one by one, apart from words. `lines`: merges cross everything but line breaks; the best compression, and worse models.
`none`: a document is one piece, which takes eight times as long to train on a megabyte, for 3 % more bytes a token."""
Digits = Literal["own", "single", "groups", "whole"]
"""Numbers: as the pre-tokenization has them, digit by digit, in groups of up to three from the left, or undivided."""

VocabSize = Annotated[int, Range(least=257, most=MOST_TOKENS)]
"""The 256 bytes and the end of a document are the least."""
_GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)
EXPRESSIONS = {
    "gpt4": _GPT4,
    "llama3": _GPT4,
    "punct": r" ?\p{L}+|\p{N}|[^\s\p{L}\p{N}]|\s+(?!\S)|\s+",
    "lines": r"[^\r\n]+[\r\n]*|[\r\n]+",
}
"""What a piece is; `gpt2`'s expression is the library's own."""
NUMBERS = {"single": r"\p{N}", "groups": r"\p{N}{1,3}"}
_DIVIDED = re.compile(r"\|\\p\{N\}(\{1,3\})?\|")
"""Where an expression divides numbers."""


def special_tokens(infilling: SentinelNames | None) -> list[str]:
    """The end of a document, and the tokens of infilling where it has some."""
    return [END_OF_TEXT, *(NAMES[infilling] if infilling else ())]


def check_size(key: str, vocab_size: int, infilling: SentinelNames | None) -> None:
    """
    Raises:
        InputError: no room for the bytes and the special tokens.
    """
    least = 256 + len(special_tokens(infilling))
    if vocab_size < least:
        raise InputError(
            f"{key} is {vocab_size}: it has to be at least {least}, the bytes, the end of a document and the tokens of "
            "infilling"
        )


def train_bpe(
    texts: Iterator[str],
    vocab_size: int,
    pre_tokenization: PreTokenization = "gpt2",
    digits: Digits = "own",
    infilling: SentinelNames | None = None,
) -> str:
    """A byte-level BPE tokenizer as the text of its tokenizer.json; smaller than asked for if the texts are small."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer(pre_tokenization, digits)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens(infilling),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return str(tokenizer.to_str())


def _pre_tokenizer(pre_tokenization: PreTokenization, digits: Digits) -> Any:
    from tokenizers import Regex, pre_tokenizers

    expressions = [NUMBERS[digits]] if digits in NUMBERS else []
    if pre_tokenization in EXPRESSIONS:
        own = EXPRESSIONS[pre_tokenization]
        expressions.append(_DIVIDED.sub(lambda found: r"|\p{N}+|", own) if digits == "whole" else own)
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre_tokenization == "gpt2")
    if not expressions:
        return bytes_
    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in expressions]
    return pre_tokenizers.Sequence([*splits, bytes_])


def mixed_texts(
    mixture: Sequence[MixtureSource],
    accounts: Mapping[str, Account] | None = None,
    validation_fraction: float = 0.0,
    split_seed: int = 0,
    max_documents: int | None = None,
) -> Iterator[str]:
    """Documents of several sources, bytes in proportion to their weights at the start, until one of them has ended.

    Args:
        accounts: of each source, to fill with what is read and what is left out.
        validation_fraction: part of the documents that are for validation and left out, those that shards leave out.
        max_documents: so many, of all sources together.

    Raises:
        InputError: epochs, which only windows have; what `documents` and `split_threshold` raise.
    """
    for part in mixture:
        if part.epochs is not None:
            raise InputError(f"--mixture: '{part.label}' has epochs, and a tokenizer is trained once: give weights")
    read = [part for part in mixture if weight_at(part, 0)]
    left = {
        part.label: (documents(part.source, accounts[part.label] if accounts else None), weight_at(part, 0))
        for part in read
    }
    thresholds = {
        part.label: _threshold(part.source, validation_fraction, split_seed) if validation_fraction else 0.0
        for part in read
    }
    done = dict.fromkeys(left, 0.0)
    given = 0
    while given != max_documents:
        label = min(done, key=lambda name: done[name])
        texts, weight = left[label]
        document = next(texts, None)
        if document is None:
            return
        if split_position(document.name, split_seed) < thresholds[label]:
            continue
        given += 1
        text = without_surrogates(document.text)
        done[label] += len(text.encode()) / weight
        yield text


def _threshold(source: SourceConfig, validation_fraction: float, split_seed: int) -> float:
    """The `split_threshold` of a corpus, read until each side is known to have a document."""
    lowest, highest = 1.0, 0.0
    for document in documents(source):
        position = split_position(document.name, split_seed)
        lowest, highest = min(lowest, position), max(highest, position)
        if lowest < validation_fraction <= highest:
            break
    return split_threshold(validation_fraction, lowest, highest)
