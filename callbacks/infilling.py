"""What a model that is trained on infilling makes of held-out middles, while it learns."""

import lightning.pytorch as pl
import torch
from torch import Tensor
from typing_extensions import override

from callbacks.base import ProbeCallback, When
from mtp_lightning.checkpoints.description import begin_ids
from mtp_lightning.data.tokens.datamodule import TokenDataModule
from mtp_lightning.data.tokens.token_bytes import token_bytes
from mtp_lightning.data.transforms.infilling import Order, needed_sentinels
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.module import MTPModule
from mtp_lightning.probes.infilling import Asking, cut_texts, joins, middle_losses
from mtp_lightning.ranges import Kept, check_ranges

_ADDED = 4
"""Sentinels, and the end of the middle."""


class InfillingProbe(ProbeCallback):
    """Cuts held-out texts in three and asks for the middle, prefix and suffix given, in the order that is trained most:
    psm, or spm where `data.infilling.spm` is above 0.5. As `val/infilling/...`:

    - `loss/head_i`: nats per token of the right middle, by each head;
    - `suffix_worth`: how much more head 1 needs from left to right, with the prefix alone;
    - `joined`, `exact`: the share of greedy middles that come to their end within twice the tokens of the right one and
      16 more, and that are the right one;
    - `tokens_per_forward`, and `/last_8`, `/last_32`, `/before`: of self-speculative decoding, and by how many tokens
      the end of the middle was away; `bytes_per_forward`, which compares between tokenizers.

    The tokens that all of the model's texts began with go before each. Without `data.infilling` it measures nothing.

    Args:
        texts: pieces of validation documents, each as long as fits into a window, at the end of training.
        validation_texts: before that, the first ones of these.
        when: every so many steps, "log" (spaced) or at every "validation".
    """

    name = "infilling"

    def __init__(self, texts: Kept = 64, validation_texts: Kept = 16, when: When = "validation") -> None:
        super().__init__(when)
        check_ranges("InfillingProbe", InfillingProbe, locals())
        self.texts, self.validation_texts = texts, validation_texts
        self._heldout: list[Tensor] = []
        self._asking: Asking | None = None

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Fetched before training: data without room for a text are refused here, not hours later."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, TokenDataModule) and data.infilling is not None:
            assert isinstance(pl_module, MTPModule)
            count, begin = max(self.texts, self.validation_texts), begin_ids(data, pl_module.parent)
            order: Order = "spm" if data.infilling.spm > 0.5 else "psm"
            self._asking = Asking(needed_sentinels(data.text_tokenizer), order, begin)
            self._heldout = data.heldout_prompts(count, max(data.context - len(begin) - _ADDED, 2))

    @override
    def is_ready(self, trainer: pl.Trainer) -> bool:
        return bool(self._heldout)

    @override
    def measure(self, trainer: pl.Trainer, model: MTPModel, at_end: bool) -> dict[str, float]:
        tokenizer = trainer.datamodule.text_tokenizer  # type: ignore[attr-defined]
        texts = cut_texts(self._heldout[: self.texts if at_end else self.validation_texts], tokenizer)
        if not texts:
            return {}
        assert self._asking is not None
        losses = middle_losses(model, texts, self._asking)
        found = {"suffix_worth": losses.pop("suffix_worth")} | {f"loss/{name}": loss for name, loss in losses.items()}
        found |= joins(Engine(model, dtype=torch.float32), texts, self._asking, token_bytes(tokenizer))
        return {f"val/infilling/{name}": value for name, value in found.items()}
