"""What tokenizers make of the same texts: how much text a token holds, in all and by source."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtp_lightning.data.tokens.tokenizer import Tokenizer

BATCH = 256
"""Documents that are encoded at a time."""


@dataclass
class Measured:
    """One tokenizer on the texts of one source."""

    documents: int = 0
    bytes: int = 0
    words: int = 0
    """Runs of characters that are no white space."""
    tokens: int = 0
    """Without the ends of documents."""
    lossless: int = 0
    """Documents that come back exactly."""
    used: Counter[int] = field(default_factory=Counter)
    """How often each id occurred."""

    def add(self, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            self.documents += 1
            self.bytes += len(text.encode(errors="replace"))
            self.words += len(text.split())
            self.tokens += len(ids)
            self.lossless += tokenizer.decode(ids) == text
            self.used.update(ids)

    def __add__(self, other: "Measured") -> "Measured":
        return Measured(
            self.documents + other.documents, self.bytes + other.bytes, self.words + other.words,
            self.tokens + other.tokens, self.lossless + other.lossless, self.used + other.used,
        )  # fmt: skip


Found = dict[str, dict[str, Measured]]
"""Source -> tokenizer -> what was found."""
ALL = "all"
"""The row over all sources."""


def measure_tokenizers(tokenizers: Mapping[str, Tokenizer], sources: Mapping[str, Iterable[str]]) -> Found:
    """Every tokenizer on the same texts; of several sources also over all of them."""
    found: Found = {}
    for source, texts in sources.items():
        found[source] = {name: Measured() for name in tokenizers}
        for batch in _batches(texts):
            for name, tokenizer in tokenizers.items():
                found[source][name].add(tokenizer, batch)
    if len(found) > 1:
        found[ALL] = {name: sum((of[name] for of in found.values()), Measured()) for name in tokenizers}
    return found


def _batches(texts: Iterable[str]) -> Iterable[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def rows_of(found: Found, tokenizers: Mapping[str, Tokenizer], reference: str) -> list[dict[str, Any]]:
    """A row for each source and tokenizer.

    `nsl` (normalized sequence length): tokens over the reference's on the same texts (arXiv 2402.01035); `fertility`:
    tokens for each word; `never_used`: share of the vocabulary, the end of a document aside, that does not occur. None
    where there is nothing to divide by: some tokenizers make no token of what they do not know.
    """
    return [
        {
            "source": source,
            "tokenizer": name,
            "vocab_size": tokenizers[name].vocab_size,
            "tokens": one.tokens,
            "bytes_per_token": _over(one.bytes, one.tokens),
            "nsl": _over(one.tokens, of[reference].tokens) if one.tokens else None,
            "fertility": _over(one.tokens, one.words, 3) if one.tokens else None,
            "never_used": _over(size - len(one.used), size),
            "lossless": round(one.lossless / one.documents, 4),
        }
        for source, of in found.items()
        for name, one in of.items()
        for size in (tokenizers[name].vocab_size - (tokenizers[name].eos_id >= 0),)
    ]


def _over(count: int, of: int, digits: int = 4) -> float | None:
    return round(count / of, digits) if of else None


def draw(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Bytes per token and the share of the vocabulary that never occurs, a group of bars a source, as PNG."""
    import io

    from matplotlib.figure import Figure

    sources, names = (list(dict.fromkeys(str(row[key]) for row in rows)) for key in ("source", "tokenizer"))
    figure = Figure(figsize=(4 + 1.2 * len(sources) * len(names) ** 0.5, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    width = 0.8 / len(names)
    for axes, key, label in zip(
        panels, ("bytes_per_token", "never_used"), ("bytes per token", "share of the vocabulary never used")
    ):
        for i, name in enumerate(names):
            of = {str(row["source"]): row[key] for row in rows if row["tokenizer"] == name and row[key] is not None}
            places = [sources.index(source) + (i - (len(names) - 1) / 2) * width for source in of]
            bars = axes.bar(places, [float(value) for value in of.values()], width, label=name)
            axes.bar_label(bars, fmt="%.2f", fontsize=7)
        axes.set_xticks(range(len(sources)), sources)
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(names), 3))
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=150)
    return out.getvalue()
