"""What a model makes of long contexts, up to those that it is trained on and beyond."""

import itertools
from collections.abc import Sequence
from typing import Annotated

import lightning.pytorch as pl
import torch
from torch import Tensor
from typing_extensions import override

from callbacks.base import ProbeCallback, When
from mtp_lightning.checkpoints.description import begin_ids
from mtp_lightning.data.tokens.datamodule import TokenDataModule
from mtp_lightning.data.tokens.heldout import heldout_prompts, longest_document
from mtp_lightning.data.tokens.token_bytes import token_bytes
from mtp_lightning.data.tokens.windows import tokens_needed
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.errors import InputError
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.module import MTPModule
from mtp_lightning.probes.long_context import key_questions, losses_by_position, rates, retrieval
from mtp_lightning.probes.pictures import retrieval_map
from mtp_lightning.ranges import Kept, Range, check_ranges

Length = Annotated[int, Range(least=2, most=10**6)]
Depth = Annotated[float, Range(least=0, most=1)]


class LongContextProbe(ProbeCallback):
    """On held-out text and on keys hidden in functions, as `probe/long_context/...`:

    - `loss/<first>_to_<last>/head_i`: nats per token of each head, by position, in texts of the longest of `lengths`;
    - `retrieval/length_L/depth_d` and `retrieval/length_L`: the share of keys found in prompts of L tokens, d of the
      way down, and its mean over the depths; a picture of them;
    - `tokens_per_forward/length_L` and `exact_drafts/tokens_per_forward/length_L`: of decoding after L tokens, with
      drafts as they are made by default (parallel heads look back 128 positions) and as the heads were trained; the
      same as `bytes_per_forward`.

    Keys are asked for after the tokens that all of the model's texts began with, which count in L. Nothing is measured
    with data that are no text, pairs among them.

    Args:
        lengths: in tokens, of contexts.
        depths: where keys are hidden, from 0, the beginning, to 1.
        keys: for each length and depth.
        texts: pieces of validation documents for the losses.
        prompts: of those for decoding.
        new_tokens: decoded after each.
        when: every so many steps, "log" (spaced), at every "validation", or at the "end" alone.

    Raises:
        InputError: a length that has no room for a key, or for which no validation document is long enough.
    """

    name = "long_context"

    def __init__(
        self,
        lengths: Sequence[Length] = (256, 512, 1024),
        depths: Sequence[Depth] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        keys: Kept = 16,
        texts: Kept = 16,
        prompts: Kept = 4,
        new_tokens: Length = 64,
        when: When = "end",
    ) -> None:
        super().__init__(when)
        check_ranges("LongContextProbe", LongContextProbe, locals())
        self.lengths, self.depths, self.keys = sorted(set(lengths)), sorted(set(depths)), keys
        self.prompts, self.new_tokens, self.texts = prompts, new_tokens, texts
        self._heldout: list[Tensor] = []
        self._begin: list[int] = []

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What cannot be asked is refused here, not hours later."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, TokenDataModule):
            return
        assert isinstance(pl_module, MTPModule)
        stores = [corpus.validation for corpus in data.corpora if not corpus.has_answers]
        if not stores:
            return
        self._begin = begin_ids(data, pl_module.parent)
        with self.named():
            for length, depth in itertools.product(self.lengths, self.depths):
                key_questions(data.text_tokenizer, length, depth, self.keys, self._begin)
        longest = max(map(longest_document, stores))
        length = tokens_needed(self.lengths[-1], pl_module.horizon)  # whatever n is: all read the same texts
        if longest < length:
            raise InputError(
                f"LongContextProbe.lengths has {self.lengths[-1]}: the longest validation document has {longest} "
                f"tokens, and {length} are needed; give shorter lengths, or data with longer documents"
            )
        stores = [store for store in stores if longest_document(store) >= length]
        count = -(-max(self.texts, self.prompts) // len(stores))
        in_turn = zip(*(heldout_prompts(store, count, length) for store in stores))
        texts = itertools.chain.from_iterable(in_turn)  # the first few are of all sources
        self._heldout = [text[: self.lengths[-1] + pl_module.horizon] for text in texts]

    @override
    def is_ready(self, trainer: pl.Trainer) -> bool:
        return bool(self._heldout)

    @override
    def measure(self, trainer: pl.Trainer, model: MTPModel, at_end: bool) -> dict[str, float]:
        losses = losses_by_position(model, self._heldout[: self.texts])
        found = {f"loss/{name}": value for name, value in losses.items()}
        tokenizer = trainer.datamodule.text_tokenizer  # type: ignore[attr-defined]
        sizes = token_bytes(tokenizer)
        keys = retrieval(model, tokenizer, self.lengths, self.depths, self.keys, self._begin)
        for length in self.lengths:
            shares = {depth: keys[length, depth] for depth in self.depths}
            found |= {f"retrieval/length_{length}/depth_{depth:g}": share for depth, share in shares.items()}
            found[f"retrieval/length_{length}"] = sum(shares.values()) / len(shares)
        for prefix, exact in (("", False), ("exact_drafts/", True)):
            engine = Engine(model, dtype=torch.float32, exact_drafts=exact)
            for length in self.lengths:
                prompts = [text[:length] for text in self._heldout[: self.prompts]]
                tokens, bytes_ = rates(engine, prompts, self.new_tokens, sizes)
                found[f"{prefix}tokens_per_forward/length_{length}"] = tokens
                found[f"{prefix}bytes_per_forward/length_{length}"] = bytes_
        step = trainer.global_step
        self.save_picture(
            trainer, retrieval_map(keys, f"keys found, step {step:,}"), f"long_context/step-{step:08d}.png"
        )
        return {f"probe/long_context/{name}": value for name, value in found.items()}
