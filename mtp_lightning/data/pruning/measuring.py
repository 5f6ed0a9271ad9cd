"""What a model says of documents: the loss of each head, and where in its space a document lies. The model is one of
ours, or somebody's encoder, which has no losses.

A document is measured by itself, in one thread: its numbers depend on no other document, nor on how many processes
there are.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch

from mtp_lightning.data.corpora.documents import Document
from mtp_lightning.data.tokens.tokenizer import without_surrogates
from mtp_lightning.data.tokens.tokenizing import Tokenized, tokenize
from mtp_lightning.errors import InputError
from mtp_lightning.files import read_json
from mtp_lightning.objective.heads import scores_by_position
from mtp_lightning.objective.targets import make_targets
from mtp_lightning.shapes import Bool, Float, Int

if TYPE_CHECKING:
    from mtp_lightning.checkpoints.files import LoadedModel
    from mtp_lightning.model.mtp import MTPModel

ROWS = 16
"""Windows of a forward."""
NO_CONTEXT = 1024
"""Positions of a model of which nobody knows on what windows it was trained; the most of an encoder, whose attention
over 16 windows at once would fill the memory."""


@runtime_checkable
class Provider(Protocol):
    """What measures documents: our own checkpoint, or another encoder."""

    @property
    def file(self) -> str:
        """Where it was loaded from, for other processes to do the same."""

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


class EncoderProvider:
    """Somebody's encoder: the mean of its last hidden states over a document, in windows of its own length, at most
    1,024 tokens, that follow one another, each with the tokenizer's special tokens.

    Args:
        folder: in Hugging Face's layout: config.json, tokenizer.json and *.safetensors. No code of its own is run, nor
            code that its configuration names.
        first_tokens: look at so many of a document; None for all.

    Raises:
        InputError: no such folder, or no encoder that `transformers` knows.
    """

    loss_names: Sequence[str] = ()

    def __init__(self, folder: Path, first_tokens: int | None = None) -> None:
        from tokenizers import Tokenizer

        missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
        files = sorted(folder.glob("*.safetensors"))
        if missing or not files:
            raise InputError(
                f"embedder: '{folder}' has to be the folder of an encoder in Hugging Face's layout, and has no "
                f"{missing[0] if missing else 'model.safetensors'}"
            )
        hashed = hashlib.sha256(f"{first_tokens}".encode())
        for path in (*sorted(folder.glob("*.json")), *files):
            with path.open("rb") as file:
                hashed.update(hashlib.file_digest(file, "sha256").digest())
        self.file, self.fingerprint, self.first_tokens = str(folder), f"encoder {hashed.hexdigest()[:16]}", first_tokens
        try:
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self.tokenizer.no_truncation()
            self.tokenizer.no_padding()
            self.model = _load_encoder(folder)
            known, has = self.tokenizer.get_vocab_size(), self.model.get_input_embeddings().num_embeddings
            if known > has:
                raise InputError(
                    f"embedder: '{folder}': its tokenizer has {known:,} tokens, and its model knows {has:,}"
                )
            self.length = _length(folder, self.model) - self.tokenizer.num_special_tokens_to_add(False)
            probed = self.embed([Document("probe", "x " * (self.length + 1))])  # a whole window, and more
        except InputError:
            raise
        except Exception as error:  # somebody's files make those who read them raise anything
            said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise InputError(
                f"embedder: '{folder}' cannot be used as an encoder ({said}); its windows are as long as "
                "model_max_length in its tokenizer_config.json"
            ) from error
        if not np.isfinite(probed).all():
            raise InputError(f"embedder: '{folder}': what it makes of a text is not finite: its weights are damaged")

    def losses(self, documents: Sequence[Document]) -> Float[np.ndarray, "n M"]:
        raise NotImplementedError("an encoder has none")

    def embed(self, documents: Sequence[Document]) -> Float[np.ndarray, "n D"]:
        with _one_thread():
            return np.stack([self._embed(document.text) for document in documents])

    @torch.no_grad()
    def _embed(self, text: str) -> Float[np.ndarray, "D"]:
        whole = self.tokenizer.encode(without_surrogates(text), add_special_tokens=False)
        left = self.first_tokens or len(whole)
        whole.truncate(self.length)
        windows = []
        for part in (whole, *whole.overflowing):
            part.truncate(max(left, 0))
            windows += [self.tokenizer.post_process(part).ids] if left > 0 else []
            left -= len(part)
        total, count = torch.zeros(self.model.config.hidden_size, dtype=torch.float64), 0
        for _, alike in groupby(windows, len):
            same = list(alike)
            for first in range(0, len(same), ROWS):
                ids_BT = torch.tensor(same[first : first + ROWS])
                if ids_BT.numel():
                    total += self.model(input_ids=ids_BT).last_hidden_state.double().sum((0, 1))
                    count += ids_BT.numel()
        return (total / max(count, 1)).float().numpy()


def _load_encoder(folder: Path) -> Any:
    """
    Raises:
        InputError: `transformers` is not installed; weights are missing, in whose place it would put random ones.
    """
    try:
        from transformers import AutoConfig, AutoModel
        from transformers.utils import logging as their_logging
    except ImportError as error:
        raise InputError("embedder: transformers is not installed: pip install 'transformers>=5.14'") from error
    logging: Any = their_logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config._attn_implementation = "eager"  # the file's own may name a kernel, which would be fetched and run
        model, found = AutoModel.from_pretrained(
            folder, config=config, local_files_only=True, trust_remote_code=False, use_safetensors=True,
            dtype=torch.float32, output_loading_info=True,
        )  # fmt: skip
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
    if missing := sorted(name for name in found["missing_keys"] if not name.startswith("pooler.")):
        raise InputError(
            f"embedder: '{folder}' lacks the weights {', '.join(missing[:3])}{' ...' * (len(missing) > 3)}"
        )
    return model.eval()


def _length(folder: Path, model: Any) -> int:
    """Tokens of a window, special ones included."""
    said = (read_json(folder / "tokenizer_config.json") or {}).get("model_max_length")
    known = [said, getattr(model.config, "max_position_embeddings", None)]
    return min(int(one) for one in (*known, NO_CONTEXT) if isinstance(one, int | float) and one > 0)


def load_provider(ckpt: str | None, first_tokens: int | None = None, embedder: str | None = None) -> Provider:
    """
    Args:
        embedder: the folder of an encoder, in place of a checkpoint.

    Raises:
        InputError: no checkpoint of a model that reads text; no encoder.
    """
    if embedder is not None:
        return EncoderProvider(Path(embedder).expanduser(), first_tokens)
    assert ckpt is not None
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
