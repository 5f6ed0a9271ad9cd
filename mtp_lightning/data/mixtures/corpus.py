"""One corpus of a run, prepared and open: a mixture has several, every other run has one."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from mtp_lightning.data.corpora.chat import with_template
from mtp_lightning.data.corpora.source import SourceConfig
from mtp_lightning.data.loader import Read, read_windows
from mtp_lightning.data.mixtures.lengths import LengthClass, length_classes
from mtp_lightning.data.mixtures.sources import MixtureSource
from mtp_lightning.data.tokens.packing import PackedOrder, check_room, pack, read_packed
from mtp_lightning.data.tokens.prepare import ShardSettings, cache_name, check_whole, prepare_source, summary
from mtp_lightning.data.tokens.store import ShardsMeta, TokenStore, read_meta
from mtp_lightning.data.tokens.tokenizer import Tokenizer
from mtp_lightning.data.tokens.verify import verify_shards
from mtp_lightning.data.tokens.vocabulary import can_read, of_text
from mtp_lightning.data.tokens.windows import TrainingOrder, ValidationOrder, tokens_needed
from mtp_lightning.data.transforms.infilled_store import InfilledStore
from mtp_lightning.errors import InputError


def corpora_of(
    parts: Sequence[MixtureSource],
    spec: object,
    settings: ShardSettings,
    folder: Path,
    workers: int,
    tokenizer: Tokenizer,
) -> "list[Corpus]":
    """A corpus of each source.

    Args:
        spec: what data.tokenizer says: beside a file may lie the template of a source of pairs.
    """
    sources = [with_template(part.source, spec) if isinstance(spec, str) else part.source for part in parts]
    return [Corpus(source, tokenizer, settings, folder, part.label, workers) for source, part in zip(sources, parts)]


class Corpus:
    """A source with its shards, which are made when they are first asked for.

    Args:
        source: where its text is.
        tokenizer: of the model.
        folder: where prepared corpora are kept.
        name: in a mixture.
        workers: processes that tokenize it.
    """

    def __init__(
        self,
        source: SourceConfig,
        tokenizer: Tokenizer,
        settings: ShardSettings,
        folder: Path,
        name: str = "",
        workers: int = 1,
    ) -> None:
        self.source, self.tokenizer, self.settings, self.folder, self.name = source, tokenizer, settings, folder, name
        self.workers = workers
        self._stores: tuple[TokenStore, TokenStore] | None = None

    @property
    def shards(self) -> Path:
        """The folder of its shards."""
        if self.source.kind == "shards":
            assert self.source.path is not None
            return Path(self.source.path).expanduser()
        return self.folder / cache_name(self.source, of_text(self.tokenizer), self.settings)

    @property
    def is_open(self) -> bool:
        return self._stores is not None

    @property
    def train(self) -> TokenStore:
        assert self._stores is not None, "setup() comes first"
        return self._stores[0]

    @property
    def validation(self) -> TokenStore:
        assert self._stores is not None, "setup() comes first"
        return self._stores[1]

    @property
    def has_answers(self) -> bool:
        """Whether its answers alone count."""
        return self.train.answer_starts is not None

    def bytes_per_position(self, context: int) -> float:
        """Bytes of training text that an input token of a window stands for; of pairs those that count in it alone, not
        the beginning of the next one or the padding that a window ends with."""
        store, meta = self.train, self.train.split_meta
        if not self.has_answers:
            return meta.n_bytes / meta.n_tokens
        starts = np.asarray(store.document_starts)
        tokens = np.diff(np.append(starts, len(store))) - 1  # without the end
        positions = (len(pack(starts, len(store), context)) - 1) * context
        return meta.n_bytes * float(np.minimum(tokens, context).sum() / max(tokens.sum(), 1)) / positions

    def prepare(self) -> None:
        """Make its shards, if they are not there, and see whether they hold what was written.

        Raises:
            InputError: they cannot be made, or a file of them is damaged.
        """
        if self.source.kind == "shards":
            try:
                verify_shards(self.shards, read_meta(self.shards))
            except InputError as error:
                raise InputError(f"data.{'mixture' if self.name else 'source'}: {error}") from error
            return
        new = not self.shards.exists()
        meta = prepare_source(self.shards, self.source, of_text(self.tokenizer), self.settings, self.workers)
        verify_shards(self.shards, meta)
        if new and meta.account is not None and meta.account["left_out"]:
            print(summary(self.source, meta), file=sys.stderr)

    def open(self, context: int, horizon: int, say: bool) -> None:
        """
        Args:
            say: whether to print what windows of this length lose of it.

        Raises:
            InputError: shards that are missing, damaged, of another tokenizer, or too short for a window.
        """
        directory, meta = self.shards, read_meta(self.shards)
        self._check_tokenizer(meta)
        check_whole(directory, meta, self.source)
        self._stores = TokenStore(directory, "train"), TokenStore(directory, "validation")
        needed = tokens_needed(context, horizon)
        for store in self._stores:
            if meta.answers:  # pairs are never too few for a window, which is padded; one can be too long for it
                found = check_room(store, context, self.source.strict)
                if found and say:
                    print(found, file=sys.stderr)
            elif len(store) < needed:
                raise InputError(
                    f"data.source: the {store.split} split of '{directory}' has {len(store)} tokens, and one window "
                    f"needs {needed} (data.context = {context} and room for {needed - context} future "
                    "tokens); use more text, a smaller data.context or another data.validation_fraction"
                )

    def _check_tokenizer(self, meta: ShardsMeta) -> None:
        mine = self.tokenizer
        if not can_read(mine, meta.tokenizer_fingerprint):
            raise InputError(
                f"data.tokenizer: the shards in '{self.shards}' were made with another tokenizer ({meta.vocab_size} "
                f"tokens, fingerprint {meta.tokenizer_fingerprint}) than this one ({mine.vocab_size} tokens, "
                f"fingerprint {mine.fingerprint}); give the one they were made with, or prepare them again"
            )

    def training(
        self, context: int, horizon: int, seed: int, infilled: Callable[[TokenStore], InfilledStore] | None = None
    ) -> tuple[Read, int]:
        """(what reads its training windows by number, how many an epoch has).

        Args:
            infilled: what is done to its documents before they are windows.
        """
        store = self.train
        if store.answer_starts is not None:
            packed = PackedOrder(pack(store.document_starts, len(store), context), context, horizon, seed=seed)
            return partial(read_packed, store, packed), packed.windows_per_epoch
        tokens = store if infilled is None else infilled(store)
        order = TrainingOrder(len(tokens), context, horizon, seed)
        return partial(read_windows, tokens, order), order.windows_per_epoch

    def validating(self, context: int, horizon: int, limit: int | None) -> tuple[Read, int]:
        """(what reads its validation windows by number, how many there are: at most `limit`)."""
        store = self.validation
        if store.answer_starts is not None:
            firsts = pack(store.document_starts, len(store), context)
            packed = PackedOrder(firsts, context, horizon, seed=None, limit=limit)
            return partial(read_packed, store, packed), packed.n_windows
        order = ValidationOrder(len(store), context, horizon, limit)
        return partial(read_windows, store, order), order.n_windows

    def lengths(self, context: int, horizon: int, limit: int | None) -> list[LengthClass]:
        """Its validation windows of text by how long their documents are.

        Raises:
            InputError: shards of pairs; see `length_classes`.
        """
        store = self.validation
        if store.answer_starts is not None:
            raise InputError(f"data.val_by_length is for text, and '{self.shards}' holds pairs: leave it out")
        order = ValidationOrder(len(store), context, horizon, limit)
        starts = order.starts(np.arange(order.n_windows))
        return length_classes(starts, context, np.asarray(store.document_starts), len(store))
