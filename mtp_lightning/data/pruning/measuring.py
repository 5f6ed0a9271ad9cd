"""What a model says of documents: the loss of each head, and where in the trunk's space a document lies.

A document is measured by itself, in one thread: its numbers depend on no other document, nor on how many processes
there are.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch

from mtp_lightning.data.corpora.documents import Document
from mtp_lightning.data.tokens.tokenizing import Tokenized, tokenize
from mtp_lightning.objective.heads import scores_by_position
from mtp_lightning.objective.targets import make_targets
from mtp_lightning.shapes import Bool, Float, Int

if TYPE_CHECKING:
    from mtp_lightning.checkpoints.files import LoadedModel
    from mtp_lightning.model.mtp import MTPModel

ROWS = 16
"""Windows of a forward."""
NO_CONTEXT = 1024
"""Positions of a model of which nobody knows on what windows it was trained."""


@runtime_checkable
class Provider(Protocol):
    """What measures documents: our own checkpoint, or another encoder."""

    @property
    def fingerprint(self) -> str:
        """Other for everything that gives other numbers."""

    @property
    def loss_names(self) -> Sequence[str]:
        """`head_1`, ...; empty for what has embeddings alone."""

    def losses(self, documents: Sequence[Document]) -> Float[np.ndarray, "n M"]:
        """Nats per token, by loss; NaN where a document has no target."""

    def embed(self, documents: Sequence[Document]) -> Float[np.ndarray, "n D"]:
        """A direction for each document; its length means nothing."""


class CheckpointProvider:
    """Our own model: its losses, and the mean of its trunk's states z over a document.

    Args:
        file: the checkpoint that it was loaded from: other processes take this very one, also of a run that goes on.
        first_tokens: look at so many of a document; None for all.
    """

    def __init__(self, loaded: "LoadedModel", file: Path, fingerprint: str, first_tokens: int | None = None) -> None:
        self.model, self.tokenizer, self.file = loaded.model, loaded.tokenizer, str(file)
        self.context, self.begin = loaded.context or NO_CONTEXT, tuple(loaded.begin_ids)
        self.fingerprint = f"{fingerprint} {self.context} {self.begin} {first_tokens}"
        self.first_tokens = first_tokens
        self.loss_names = self.model.heads_config.loss_names

    def losses(self, documents: Sequence[Document]) -> Float[np.ndarray, "n M"]:
        with _one_thread():
            return np.stack([document_losses(self.model, one, self.context) for one in self._tokens(documents)])

    def embed(self, documents: Sequence[Document]) -> Float[np.ndarray, "n D"]:
        with _one_thread():
            return np.stack(
                [document_embedding(self.model, one.tokens, self.context) for one in self._tokens(documents)]
            )

    def _tokens(self, documents: Sequence[Document]) -> Iterator[Tokenized]:
        for one in tokenize(documents, self.tokenizer):
            if not one.answer:  # of pairs, `tokenize` has put them there
                one = one._replace(tokens=[*self.begin, *one.tokens])
            yield one if self.first_tokens is None else one._replace(tokens=one.tokens[: self.first_tokens])


def load_provider(ckpt: str, first_tokens: int | None = None) -> CheckpointProvider:
    """
    Raises:
        InputError: no checkpoint of a model that reads text.
    """
    from mtp_lightning.checkpoints.files import load_model
    from mtp_lightning.checkpoints.select import find_checkpoint
    from mtp_lightning.checkpoints.verify import content_hash

    file = find_checkpoint(Path(ckpt))
    loaded = load_model(file)
    return CheckpointProvider(
        loaded, file, f"{content_hash(loaded.model)} {loaded.tokenizer.fingerprint}", first_tokens
    )


def document_losses(model: "MTPModel", document: Tokenized, context: int) -> Float[np.ndarray, "M"]:
    """Nats per token of each of the model's losses, over all targets of the document; of pairs, over the answer's.

    Windows of `context` inputs follow one another, as in training; NaN for a loss without a target.
    """
    heads = model.heads_config
    tokens = np.asarray(document.tokens, dtype=np.int64)
    sums = np.zeros((2, len(heads.loss_names)))
    length = max(1, min(context, len(tokens) - 1))
    for window_BL, places_BL, inside_BL in _windows(tokens, len(tokens) - 1, length, heads.horizon):
        mask_BL = torch.from_numpy(inside_BL & (places_BL >= document.answer))
        targets = make_targets(heads, torch.from_numpy(window_BL), loss_mask_BL=mask_BL)
        (found,) = scores_by_position(model, targets, [0, length])
        sums += np.stack([found.nll.double().numpy(), found.n_valid.double().numpy()])
    return np.where(sums[1] > 0, sums[0] / np.maximum(sums[1], 1), np.nan)


@torch.no_grad()
def document_embedding(model: "MTPModel", tokens: Sequence[int], context: int) -> Float[np.ndarray, "D"]:
    """The mean of the trunk's z over the document's tokens."""
    array = np.asarray(tokens, dtype=np.int64)
    length = min(context, len(array))
    rotary, total = model.rotary(torch.arange(length)), torch.zeros(model.config.dim, dtype=torch.float64)
    for window_BT, _, inside_BT in _windows(array, len(array), length, 0):
        z_BTD = model.run_trunk(torch.from_numpy(window_BT), rotary)
        total += z_BTD[torch.from_numpy(inside_BT)].double().sum(0)
    return (total / len(array)).float().numpy()


Windows = tuple[Int[np.ndarray, "B L"], Int[np.ndarray, "B L"], Bool[np.ndarray, "B L"]]


def _windows(tokens: Int[np.ndarray, "_"], inputs: int, length: int, horizon: int) -> Iterator[Windows]:
    """(tokens, their places in the document, whether it has such a place) of windows that begin every `length` tokens
    and look `horizon` further, some at a time."""
    starts = np.arange(0, inputs, length)
    for first in range(0, len(starts), ROWS):
        places = starts[first : first + ROWS, None] + np.arange(length + horizon)
        yield tokens[np.minimum(places, len(tokens) - 1)], places, places < len(tokens)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Several would add up in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
