"""The rows of one vocabulary as those of another: fast vocabulary transfer (Gee et al. 2022, EMNLP's industry track).

A token that both tokenizers have keeps its row: one of text by its text, one that no text has by its name or by what it
does (begin and end of a text, infilling). Another one of text gets the mean of the rows of the tokens that the old
tokenizer writes its text with, in the embedding and in every unembedding; any other the mean of all.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mtp_lightning.data.tokens.token_bytes import token_texts
from mtp_lightning.data.tokens.tokenizer import Tokenizer, begin_ids
from mtp_lightning.data.transforms.infilling import sentinels
from mtp_lightning.errors import InputError
from mtp_lightning.model.transfer import BIGRAM, Source

MATRICES = ("embedding.weight", "unembedding.weight", *BIGRAM)
FURTHER = "further_unembeddings."
MOST_STRANGE = 0.1
"""Share of tokens whose text the old vocabulary cannot write."""


class Transfer(NamedTuple):
    """Where the rows of a new vocabulary come from."""

    pieces: list[list[int]]
    """Of each new token the old ones whose rows it is the mean of; none: of all."""
    summary: str
    """In one line."""


def transfer_of(old: Tokenizer, new: Tokenizer, old_size: int, vocab_size: int) -> Transfer:
    """
    Args:
        old_size: rows of the old model.
        vocab_size: rows of the new one; those beyond the tokenizer's tokens are the mean of all.

    Raises:
        InputError: the old vocabulary cannot write what the new one does.
    """
    if old.state() == new.state():
        return Transfer([[i] if i < old_size else [] for i in range(vocab_size)], "the same tokens")
    texts = token_texts(new)
    pieces = _written(texts, old)
    theirs = _marks(old)
    for mark, i in _marks(new).items():
        if mark in theirs:
            pieces[i] = [theirs[mark]]
    pieces[new.eos_id] = [old.eos_id]
    strange = sum(bool(text) and not found for text, found in zip(texts, pieces))
    if strange > MOST_STRANGE * len(texts):
        raise InputError(
            f"model.init.vocabulary: of {len(texts)} tokens of data.tokenizer those of model.init.path cannot write "
            f"{strange}: these two have no alphabet in common; give model.init.vocabulary: random"
        )
    kept, whole = sum(len(found) == 1 for found in pieces), sum(len(found) > 1 for found in pieces)
    pieces += [[]] * (vocab_size - len(pieces))
    summary = f"{kept} tokens keep their rows, {whole} are means of their pieces, {pieces.count([])} the mean of all"
    return Transfer(pieces, summary)


def _marks(tokenizer: Tokenizer) -> dict[object, int]:
    """The tokens that no text has, by what they do and, after that, by their names."""
    found, state = sentinels(tokenizer), tokenizer.state()
    marks: dict[object, int] = {("begin", k): i for k, i in enumerate(begin_ids(tokenizer))}
    marks |= {("infilling", part): i for part, i in (found._asdict() if found else {}).items()}
    added = json.loads(state["json"]).get("added_tokens") if "json" in state else ()
    return marks | {token["content"]: token["id"] for token in added or ()}


def _written(texts: Sequence[bytes | None], old: Tokenizer) -> list[list[int]]:
    """The old token of each text, or the tokens that the old tokenizer writes it with. Where these are others by
    themselves (parts of characters, a space that is put before a text), the longest that fit; none where none do."""
    known = token_texts(old)
    ids = {text: i for i, text in enumerate(known) if text}  # of two the later: the first is a byte to fall back on
    longest = max(map(len, ids), default=0)
    encoded = old.encode_batch([(text or b"").decode(errors="replace") for text in texts])
    pieces = []
    for text, found in zip(texts, encoded, strict=True):
        if not text or text in ids:
            pieces.append([ids[text]] if text else [])
        elif b"".join(known[i] or b"" for i in found) == text:
            pieces.append(found)
        else:
            pieces.append(_longest(text, ids, longest))
    return pieces


def _longest(text: bytes, ids: dict[bytes, int], longest: int) -> list[int]:
    """Tokens that make `text`, the longest first that fits at each place; none where they cannot."""
    found, at = [], 0
    while at < len(text):
        size = next((n for n in range(min(longest, len(text) - at), 0, -1) if text[at : at + n] in ids), 0)
        if not size:
            return []
        found.append(ids[text[at : at + size]])
        at += size
    return found


def with_vocabulary(source: Source, vocab_size: int, pieces: Sequence[Sequence[int]] | None = None) -> Source:
    """The source with other rows; without `pieces` their shapes alone, on the meta device."""
    weights = dict(source.weights)
    for name, weight in weights.items():
        if name in MATRICES or name.startswith(FURTHER):
            meta = torch.empty(vocab_size, weight.shape[1], dtype=weight.dtype, device="meta")
            weights[name] = meta if pieces is None else _rows(weight, pieces)
    return source._replace(weights=weights, backbone=replace(source.backbone, vocab_size=vocab_size))


def _rows(weight: Tensor, pieces: Sequence[Sequence[int]]) -> Tensor:
    """Means in float64: of one row, that row bit for bit."""
    wide = weight.detach().to("cpu", torch.float64)
    sizes = torch.tensor([0, *(len(found) for found in pieces[:-1])]).cumsum(0)
    rows = F.embedding_bag(torch.tensor([i for found in pieces for i in found]), wide, sizes, mode="mean")
    empty = torch.tensor([not found for found in pieces])
    return torch.where(empty[:, None], wide.mean(0), rows).to(weight.dtype)
