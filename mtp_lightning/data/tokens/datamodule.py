"""The data module that trains on text.

Longer than other files: all that Lightning and the callbacks ask of text stands here; what is done is in the rooms
around it.
"""

import functools
import hashlib
import itertools
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from mtp_lightning.data.corpora.source import PAIRS, PYTHON_STDLIB, SourceConfig
from mtp_lightning.data.datamodule import MTPDataModule
from mtp_lightning.data.loader import BatchLoader, Read, ResumableLoader, TrainingWindows, ValidationWindows
from mtp_lightning.data.mixtures.corpus import Corpus, corpora_of
from mtp_lightning.data.mixtures.lengths import LengthClass
from mtp_lightning.data.mixtures.order import MixtureOrder, order_of
from mtp_lightning.data.mixtures.reading import SourceBatches, read_mixture, read_some
from mtp_lightning.data.mixtures.sources import MixtureSource, check_mixture, reweighted
from mtp_lightning.data.tokenizers.recipe import TrainedTokenizer, tokenizer_of
from mtp_lightning.data.tokens.heldout import heldout_prompts, heldout_texts, token_counts
from mtp_lightning.data.tokens.prepare import PrepareWorkers, ShardSettings
from mtp_lightning.data.tokens.store import TokenStore
from mtp_lightning.data.tokens.token_bytes import token_bytes
from mtp_lightning.data.tokens.tokenizer import Tokenizer, begin_ids
from mtp_lightning.data.tokens.windows import HORIZON_RESERVE
from mtp_lightning.data.transforms.infilled_store import InfilledStore
from mtp_lightning.data.transforms.infilling import InfillingConfig
from mtp_lightning.data.transforms.reading import horizon_of_plain, reading
from mtp_lightning.errors import InputError
from mtp_lightning.ranges import Count, Fraction, Seed, Weight, Workers, check_ranges
from mtp_lightning.shapes import Int


class TokenDataModule(MTPDataModule):
    """Windows of a corpus, which is prepared (tokenized into memory-mapped shards) the first time it is used.

    Args:
        source: the corpus.
        mixture: several corpora in its place, each with a weight, as in [{source: {kind: stories}, weight: 2}, ...].
        mixture_weights: weights by the names of sources, in place of those that the mixture gives these: what a grid
            varies and a flag sets.
        tokenizer: `bytes`, the path of a tokenizer.json, or `{train: {vocab_size: 1024}}`: one that is trained on the
            training documents when they are first prepared, and kept for every run that would train the same.
        context: T, the input tokens of a window.
        batch_size: windows of a batch, over all processes together.
        horizon: how many tokens ahead the model looks at most; a window has so many tokens more than T. Follows from
            model.heads.n_future and offsets, and is not set.
        vocab_size: vocabulary of the model; has to be the tokenizer's, or padded (`is_padded`); of bytes with
            infilling it is 259. Follows from model.backbone.vocab_size.
        seed: of the order of the training windows. Follows from seed_everything.
        validation_fraction: part of the documents, in expectation, that is for validation.
        split_seed: of that choice. Not `seed`: runs with different seeds are validated on the same documents.
        val_windows: validation windows, of each source, spread evenly over its validation documents; null for all.
        val_by_length: also report validation apart for windows in short, medium and long documents (`val/short/...`),
            about a third each; of one corpus of text.
        num_workers: processes that read ahead; reading memory-mapped tokens hardly needs any.
        directory: where prepared corpora are kept.
        end_token: the token of a tokenizer.json that ends a document; null looks for a usual name, special tokens
            first. A text must not be able to write it.
        prepare_workers: processes that tokenize a corpus when it is prepared.
        infilling: training documents with their middle last; null for none. Validation reads them from left to right.

    Raises:
        InputError: bad input; the message names the configuration key.
    """

    batch_size: int
    context: int

    def __init__(
        self,
        source: SourceConfig = PYTHON_STDLIB,
        tokenizer: str | TrainedTokenizer = "bytes",
        context: Count = 256,
        batch_size: Count = 32,
        horizon: Count = 1,
        vocab_size: Count = 256,
        seed: Seed = 0,
        validation_fraction: Fraction = 0.05,
        split_seed: Seed = 0,
        val_windows: Count | None = 256,
        num_workers: Workers = 0,
        directory: str = "runs/data",
        end_token: str | None = None,
        mixture: list[MixtureSource] | None = None,
        mixture_weights: dict[str, Weight] | None = None,
        prepare_workers: PrepareWorkers = 1,
        infilling: InfillingConfig | None = None,
        val_by_length: bool = False,
    ) -> None:
        super().__init__(horizon=horizon, vocab_size=vocab_size)
        check_ranges("data", TokenDataModule, locals())
        mixture = reweighted(mixture, mixture_weights or {})
        if mixture is not None:
            check_mixture(mixture, source)
        if val_by_length and (mixture is not None or source.kind in ("pairs", "story_pairs")):
            raise InputError(
                "data.val_by_length is for one corpus of text, and this is "
                f"{'a mixture, whose sources are reported apart' if mixture else 'one of pairs'}: leave it out"
            )
        self.val_by_length = val_by_length
        self.context, self.batch_size, self.seed = context, batch_size, seed
        self.val_windows, self.num_workers = val_windows, num_workers
        settings = ShardSettings(validation_fraction=validation_fraction, split_seed=split_seed)
        self.infilling = infilling
        self.mixture: Sequence[MixtureSource] = mixture or ()
        parts, folder = self.mixture or [MixtureSource(source, name="")], Path(directory)
        self._check_infilling(any(part.source.kind in PAIRS for part in parts))
        self._tokenizer = tokenizer_of(tokenizer, end_token, vocab_size, infilling is not None, parts, folder, settings)
        self._corpora = partial(corpora_of, parts, tokenizer, settings, folder, prepare_workers)
        self._token_bytes: Tensor | None = None
        self._counted: tuple[MixtureOrder, list[int]] | None = None

    @functools.cached_property
    def text_tokenizer(self) -> Tokenizer:
        """The tokenizer of the text; one of a recipe is trained when it is first asked for."""
        return self._tokenizer()

    @property
    @override
    def tokenizer(self) -> Tokenizer:  # type: ignore[override]
        return self.text_tokenizer

    @functools.cached_property
    def corpora(self) -> list[Corpus]:
        """Those of the mixture, or the one."""
        return self._corpora(self.text_tokenizer)

    @property
    def begin_ids(self) -> list[int]:
        """Tokens that every question of pairs begins with."""
        pairs = any(one.has_answers if one.is_open else one.source.kind == "pairs" for one in self.corpora)
        return begin_ids(self.text_tokenizer) if pairs else []

    @override
    def prepare_data(self) -> None:
        for corpus in self.corpora:
            corpus.prepare()

    @override
    def setup(self, stage: str) -> None:
        for corpus in self.corpora:
            corpus.open(self.context, self.horizon, say=stage == "fit" and self.rank_and_world_size[0] == 0)
        self._check_infilling(any(corpus.has_answers for corpus in self.corpora))  # which shards may have, too
        if self.val_by_length:  # refused before anything is trained or logged
            said = ", ".join(f"{len(one.windows)} {one.name} (to {one.most_tokens:,} tokens)" for one in self.lengths)
            if stage == "fit" and self.rank_and_world_size[0] == 0:
                print(f"validation windows by the length of their documents: {said}", file=sys.stderr)
        self.check_divides_over_ranks(self.batch_size)
        if stage == "fit" and self.trainer is not None:
            _ = self.n_train_batches  # refuse before anything is trained or logged

    def _check_infilling(self, has_pairs: bool) -> None:
        if self.infilling is not None and has_pairs:
            raise InputError(
                "data.infilling is for text, and a source has pairs of a question and its answer: leave it out"
            )

    @property
    def _only(self) -> Corpus:
        (corpus,) = self.corpora
        return corpus

    @property
    def shards(self) -> Path:
        """The folder of the prepared corpus, where there is one alone."""
        return self._only.shards

    @property
    def train_store(self) -> TokenStore:
        """Of the corpus, where there is one alone."""
        return self._only.train

    @property
    def validation_store(self) -> TokenStore:
        """Of the corpus, where there is one alone."""
        return self._only.validation

    @property
    def validation_pairs(self) -> TokenStore | None:
        """The validation split of the first corpus of pairs; None without any."""
        return next((corpus.validation for corpus in self.corpora if corpus.has_answers), None)

    @property
    @override
    def token_bytes(self) -> Int[Tensor, "V"] | None:
        if self._token_bytes is None:
            self._token_bytes = torch.tensor(token_bytes(self.text_tokenizer))
        return self._token_bytes

    @property
    @override
    def bytes_per_token(self) -> float | None:
        """Ends of documents are tokens and no bytes. Of a mixture as the whole run sees it."""
        rates = [corpus.bytes_per_position(self.context) for corpus in self.corpora]
        if not self.mixture or self.trainer is None:
            return rates[0] if len(rates) == 1 else None
        seen = self.seen(self.trainer.max_steps)
        tokens = [seen[f"data/{part.label}/tokens"] for part in self.mixture]
        return sum(rate * count for rate, count in zip(rates, tokens)) / sum(tokens)

    @property
    @override
    def fingerprint(self) -> str | None:
        if not all(corpus.is_open for corpus in self.corpora):
            return None
        first, *others = (corpus.train.meta.fingerprint for corpus in self.corpora)
        return hashlib.sha256("\0".join([first, *others]).encode()).hexdigest()[:16] if others else first

    @property
    @override
    def window_room(self) -> int | None:
        pairs = all(corpus.is_open and corpus.has_answers for corpus in self.corpora)  # packed, whatever the horizon
        return None if pairs else max(self.horizon, HORIZON_RESERVE)

    @override
    def train_dataloader(self) -> ResumableLoader:
        batches = TrainingWindows(self._reader(), self.batch_size, *self.rank_and_world_size)
        return self.training_loader(batches, self.num_workers)

    @override
    def val_dataloader(self) -> BatchLoader:
        reads = {one.name: one.validating(self.context, self.horizon, self.val_windows) for one in self.corpora}
        if self.val_by_length:
            (read, _), classes = reads[""], self.lengths
            reads = {one.name: (partial(read_some, read, one.windows), len(one.windows)) for one in classes}
        split = {
            name: ValidationWindows(read, n_windows, self.batch_size, *self.rank_and_world_size)
            for name, (read, n_windows) in reads.items()
        }
        batches = split[""] if "" in split else SourceBatches(split)
        return BatchLoader(batches, len(batches), self.num_workers)

    @functools.cached_property
    def lengths(self) -> list[LengthClass]:
        """The classes that validation windows are told apart by, where `val_by_length` asks for it."""
        return self._only.lengths(self.context, self.horizon, self.val_windows)

    def _reader(self) -> Read:
        """What reads training windows by number."""
        reads, sizes = self._training()
        read = reads[0]
        if self.mixture:
            masked = any(corpus.has_answers for corpus in self.corpora)
            read = partial(read_mixture, reads, order_of(self.mixture, sizes, self.step_windows), masked)
        return reading(read, self.infilling, self.text_tokenizer, self.context, self.horizon, self.seed)

    def _training(self) -> tuple[list[Read], list[int]]:
        """Of each corpus, what reads its training windows, and how many an epoch has."""
        horizon, infilled = horizon_of_plain(self.infilling, self.horizon), None
        if self.infilling is not None and self.infilling.level == "document":
            infilled = partial(InfilledStore, config=self.infilling, tokenizer=self.text_tokenizer, seed=self.seed)
        reads, sizes = zip(*(one.training(self.context, horizon, self.seed, infilled) for one in self.corpora))
        return list(reads), list(sizes)

    @override
    def seen(self, steps: int) -> dict[str, float]:
        """`data/<name>/tokens` and `data/<name>/epochs` after so many optimizer steps: counted, not remembered, so that
        a run that was resumed has the same. Of pairs, padding counts as tokens."""
        if not self.mixture:
            return {}
        if self._counted is None:
            sizes = self._training()[1]
            self._counted = order_of(self.mixture, sizes, self.step_windows), sizes
        order, sizes = self._counted
        found: dict[str, float] = {}
        for part, windows, size in zip(self.mixture, order.counts(steps * self.step_windows), sizes):
            tokens = float(windows * self.context)
            found |= {f"data/{part.label}/tokens": tokens, f"data/{part.label}/epochs": windows / size}
        return found

    def heldout_prompts(self, count: int, length: int) -> list[Tensor]:
        """`count` pieces, (length,) int64 each, of validation documents: always the same, from each corpus in turn,
        spread over its documents.

        Each lies inside one document where documents are long enough; of pairs, questions (`heldout.heldout_prompts`).

        Raises:
            InputError: the validation split is shorter than a prompt.
        """
        parts = [heldout_prompts(corpus.validation, part, length) for corpus, part in self._shares(count)]
        return [prompt for turn in itertools.zip_longest(*parts) for prompt in turn if prompt is not None]

    def heldout_texts(self, count: int) -> list[str]:
        """`count` validation documents as text, always the same, or all if there are fewer."""
        return [
            text
            for corpus, part in self._shares(count)
            for text in heldout_texts(corpus.validation, self.text_tokenizer, part)
        ]

    def _shares(self, count: int) -> list[tuple[Corpus, int]]:
        """`count` dealt out to the corpora; those that get none are left out."""
        n = len(self.corpora)
        return [(corpus, (count + n - 1 - i) // n) for i, corpus in enumerate(self.corpora) if count > i]

    def token_counts(self) -> Int[np.ndarray, "V"]:
        """How often each token occurs in the training split."""
        counts: Int[np.ndarray, "V"] = np.sum([token_counts(corpus.train) for corpus in self.corpora], axis=0)
        return counts

    @override
    def state_dict(self) -> dict[str, Any]:
        state = {
            "tokenizer": self.text_tokenizer.state(),
            "fingerprint": self.fingerprint,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "context": self.context,
        }
        if self.infilling is not None:
            state["infilling"] = asdict(self.infilling)
        return state | {"mixture": self._weights()} if len(self.corpora) > 1 else state

    def _weights(self) -> str:
        """All that the order of the sources follows from."""
        weights = {p.label: f"{p.epochs} epochs" if p.epochs is not None else p.weight for p in self.mixture}
        return f"{weights}, {self.step_windows} windows a step"

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuses a checkpoint whose training would go on with other data.

        Evaluation on other data than was trained on is fine, with another tokenizer it is not.

        Raises:
            InputError: names the key that differs.
        """
        mine = self.state_dict()
        if state_dict["tokenizer"] != mine["tokenizer"]:
            raise InputError("ckpt_path: the checkpoint was trained with another tokenizer than data.tokenizer")
        if self.trainer is not None and self.trainer.state.fn != "fit":
            return
        if state_dict["fingerprint"] != mine["fingerprint"]:
            key = "mixture" if self.mixture else "source"
            folders = ", ".join(f"'{corpus.shards}'" for corpus in self.corpora)
            raise InputError(
                f"ckpt_path: the checkpoint was trained on other text than data.{key} gives now ({folders} has "
                f"fingerprint {mine['fingerprint']}, and it was {state_dict['fingerprint']}); start a new run"
            )
        self.check_continues(state_dict, ("batch_size", "seed", "context", "infilling", *({"mixture"} & mine.keys())))
