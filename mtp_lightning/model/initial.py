"""Weights to begin a run with: what the user says (`model.init`). `transfer` carries it out."""

from dataclasses import dataclass
from typing import Literal

from mtp_lightning.errors import InputError

CELL = "cell:"
"""The beginning of a path that is a cell of the same grid, by its signature; the launcher puts its folder in place."""


@dataclass(frozen=True)
class InitConfig:
    """Weights to begin a new run from: step 0, its own optimizer, schedule and data. (`ckpt_path` continues a run.)"""

    path: str | None = None
    """The folder of a run, a checkpoint, or a safetensors file of `mtp export` or `mtp import`; null: weights are
    drawn. The model may have another n_future, other kinds of further heads, another context and rope_theta."""
    heads: Literal["keep", "first", "copy", "identity", "random"] = "keep"
    """What becomes of the heads; head 1 is the source's in all of them.

    - `keep`: all are the source's, which has as many, of the same kind, with the same layers and offsets;
    - `first`: heads 2 .. n are stripped, for a model of n_future = 1;
    - `copy`: heads 2 .. n are copies of head 1, the last layer before the next token;
    - `identity`: the same with attention's and SwiGLU's last projections zero: a head passes what it reads;
    - `random`: heads 2 .. n are drawn."""
    unembedding: Literal["keep", "random"] = "keep"
    """`random`: drawn, and the embedding too where the vocabulary or the tokenizer is another."""

    vocabulary: Literal["keep", "transfer", "random"] = "keep"
    """`transfer`: the source had another tokenizer. A token that it knew keeps its row of embedding and unembeddings
    (special ones by their names, those of infilling, begin and end by what they do), another one gets the mean of those
    that its text was written with. `random`: embedding and unembedding are drawn."""

    @property
    def draws_unembedding(self) -> bool:
        return "random" in (self.unembedding, self.vocabulary)

    def __post_init__(self) -> None:
        given = ("heads", self.heads), ("unembedding", self.unembedding), ("vocabulary", self.vocabulary)
        for name, value in given:
            if self.path is None and value != "keep":
                raise InputError(f"model.init.{name} is '{value}', and model.init.path names no weights to begin with")
        if self.path is not None and not self.path.strip():
            raise InputError("model.init.path is empty: it has to name a run's folder or a file, or be null")
