"""The data module that trains on text."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from mtp_lightning.data.corpora.chat import with_template
from mtp_lightning.data.corpora.source import PYTHON_STDLIB, SourceConfig
from mtp_lightning.data.datamodule import MTPDataModule
from mtp_lightning.data.loader import (
    BatchLoader,
    Read,
    ResumableLoader,
    TrainingWindows,
    ValidationWindows,
    read_windows,
)
from mtp_lightning.data.tokens.heldout import heldout_prompts, heldout_texts, token_counts
from mtp_lightning.data.tokens.packing import PackedOrder, check_room, pack, read_packed
from mtp_lightning.data.tokens.prepare import ShardSettings, cache_name, check_whole, prepare_source, summary
from mtp_lightning.data.tokens.store import ShardsMeta, TokenStore, read_meta
from mtp_lightning.data.tokens.token_bytes import token_bytes
from mtp_lightning.data.tokens.tokenizer import load_tokenizer
from mtp_lightning.data.tokens.windows import TrainingOrder, ValidationOrder, tokens_needed
from mtp_lightning.errors import InputError
from mtp_lightning.ranges import Count, Fraction, Seed, Workers, check_ranges
from mtp_lightning.shapes import Int


class TokenDataModule(MTPDataModule):
    """Windows of a corpus, which is prepared (tokenized into memory-mapped shards) the first time it is used.

    Args:
        source: the corpus.
        tokenizer: `bytes`, or the path of a tokenizer.json.
        context: T, the input tokens of a window.
        batch_size: windows of a batch, over all processes together.
        horizon: how many tokens ahead the model looks at most; a window has so many tokens more than T. Follows from
            model.heads.n_future and offsets, and is not set.
        vocab_size: vocabulary of the model; has to be the tokenizer's, or padded (`is_padded`). Follows from
            model.backbone.vocab_size.
        seed: of the order of the training windows. Follows from seed_everything.
        validation_fraction: part of the documents, in expectation, that is for validation.
        split_seed: of that choice. Not `seed`: runs with different seeds are validated on the same documents.
        val_windows: validation windows, spread evenly over the validation documents; null for all.
        num_workers: processes that read ahead; reading memory-mapped tokens hardly needs any.
        directory: where prepared corpora are kept.
        end_token: the token of a tokenizer.json that ends a document; null looks for a usual name, special tokens
            first. A text must not be able to write it.

    Raises:
        InputError: bad input; the message names the configuration key.
    """

    batch_size: int
    context: int

    def __init__(
        self,
        source: SourceConfig = PYTHON_STDLIB,
        tokenizer: str = "bytes",
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
    ) -> None:
        super().__init__(horizon=horizon, vocab_size=vocab_size)
        check_ranges("data", TokenDataModule, locals())
        self.source = with_template(source, tokenizer)
        self.context, self.batch_size, self.seed = context, batch_size, seed
        self.val_windows, self.num_workers, self.directory = val_windows, num_workers, Path(directory)
        self.settings = ShardSettings(validation_fraction=validation_fraction, split_seed=split_seed)
        self.text_tokenizer = load_tokenizer(tokenizer, end_token)
        self.tokenizer = self.text_tokenizer
        n_tokens = self.text_tokenizer.vocab_size
        if n_tokens != vocab_size and not (tokenizer != "bytes" and is_padded(vocab_size, n_tokens)):
            raise InputError(
                f"model.backbone.vocab_size is {vocab_size}, and the tokenizer data.tokenizer = '{tokenizer}' has "
                f"{n_tokens} tokens: set model.backbone.vocab_size: {n_tokens}"
            )
        self._token_bytes: Tensor | None = None
        self._train: TokenStore | None = None
        self._validation: TokenStore | None = None

    @property
    def shards(self) -> Path:
        """The folder of the prepared corpus."""
        if self.source.kind == "shards":
            assert self.source.path is not None
            return Path(self.source.path).expanduser()
        return self.directory / cache_name(self.source, self.text_tokenizer, self.settings)

    @override
    def prepare_data(self) -> None:
        if self.source.kind == "shards":
            return
        new = not self.shards.exists()
        meta = prepare_source(self.shards, self.source, self.text_tokenizer, self.settings)
        if new and meta.account is not None and meta.account["left_out"]:
            print(summary(self.source, meta), file=sys.stderr)

    @override
    def setup(self, stage: str) -> None:
        directory, meta = self.shards, read_meta(self.shards)
        self._check_tokenizer(meta)
        check_whole(directory, meta, self.source)
        self._train, self._validation = TokenStore(directory, "train"), TokenStore(directory, "validation")
        if meta.answers:
            self._check_answers(stage)
        for store in () if meta.answers else (self._train, self._validation):
            needed = tokens_needed(self.context, self.horizon)
            if len(store) < needed:
                raise InputError(
                    f"data.source: the {store.split} split of '{directory}' has {len(store)} tokens, and one window "
                    f"needs {needed} (data.context = {self.context} and room for {needed - self.context} future "
                    "tokens); use more text, a smaller data.context or another data.validation_fraction"
                )
        self.check_divides_over_ranks(self.batch_size)
        if stage == "fit" and self.trainer is not None:
            _ = self.n_train_batches  # refuse before anything is trained or logged

    def _check_answers(self, stage: str) -> None:
        """Pairs are never too few for a window, which is padded; but an answer can lie beyond its window's end."""
        for store in (self.train_store, self.validation_store):
            found = check_room(store, self.context, self.source.strict)
            if found and stage == "fit" and self.rank_and_world_size[0] == 0:
                print(found, file=sys.stderr)

    def _check_tokenizer(self, meta: ShardsMeta) -> None:
        mine = self.text_tokenizer
        if meta.tokenizer_fingerprint != mine.fingerprint:
            raise InputError(
                f"data.tokenizer: the shards in '{self.shards}' were made with another tokenizer ({meta.vocab_size} "
                f"tokens, fingerprint {meta.tokenizer_fingerprint}) than this one ({mine.vocab_size} tokens, "
                f"fingerprint {mine.fingerprint}); give the one they were made with, or prepare them again"
            )

    @property
    def train_store(self) -> TokenStore:
        assert self._train is not None, "setup() comes first"
        return self._train

    @property
    def validation_store(self) -> TokenStore:
        assert self._validation is not None, "setup() comes first"
        return self._validation

    @property
    @override
    def token_bytes(self) -> Int[Tensor, "V"] | None:
        if self._token_bytes is None:
            self._token_bytes = torch.tensor(token_bytes(self.text_tokenizer))
        return self._token_bytes

    @property
    @override
    def fingerprint(self) -> str | None:
        return None if self._train is None else self._train.meta.fingerprint

    @override
    def train_dataloader(self) -> ResumableLoader:
        batches = TrainingWindows(self._reader(self.train_store)[0], self.batch_size, *self.rank_and_world_size)
        return self.training_loader(batches, self.num_workers)

    @override
    def val_dataloader(self) -> BatchLoader:
        read, n_windows = self._reader(self.validation_store)
        batches = ValidationWindows(read, n_windows, self.batch_size, *self.rank_and_world_size)
        return BatchLoader(batches, len(batches), self.num_workers)

    def _reader(self, store: TokenStore) -> tuple[Read, int]:
        """What reads the split's windows by number, and how many of them are validated on."""
        trains, sizes = store.split == "train", (self.context, self.horizon)
        if store.answer_starts is not None:
            firsts = pack(store.document_starts, len(store), self.context)
            packed = PackedOrder(firsts, *sizes, seed=self.seed if trains else None, limit=self.val_windows)
            return partial(read_packed, store, packed), packed.n_windows
        if trains:
            return partial(read_windows, store, TrainingOrder(len(store), *sizes, self.seed)), 0
        order = ValidationOrder(len(store), *sizes, self.val_windows)
        return partial(read_windows, store, order), order.n_windows

    def heldout_prompts(self, count: int, length: int) -> list[Tensor]:
        """`count` pieces, (length,) int64 each, of validation documents: always the same, spread over the documents.

        Each lies inside one document where documents are long enough; of pairs, questions (`heldout.heldout_prompts`).

        Raises:
            InputError: the validation split is shorter than a prompt.
        """
        return heldout_prompts(self.validation_store, count, length)

    def heldout_texts(self, count: int) -> list[str]:
        """`count` validation documents as text, always the same, or all if there are fewer."""
        return heldout_texts(self.validation_store, self.text_tokenizer, count)

    def token_counts(self) -> Int[np.ndarray, "V"]:
        """How often each token occurs in the training split."""
        return token_counts(self.train_store)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "tokenizer": self.text_tokenizer.state(),
            "fingerprint": self.fingerprint,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "context": self.context,
        }

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
            raise InputError(
                f"ckpt_path: the checkpoint was trained on other text than data.source gives now ('{self.shards}' has "
                f"fingerprint {mine['fingerprint']}, and it was {state_dict['fingerprint']}); start a new run"
            )
        self.check_continues(state_dict, ("batch_size", "seed", "context"))


def is_padded(vocab_size: int, n_tokens: int) -> bool:
    """Whether a model has some rows more than its tokenizer has tokens, as Qwen's have for faster matrix products: a
    multiple of 64, at most 1,024 more."""
    return vocab_size % 64 == 0 and 0 < vocab_size - n_tokens <= 1024
