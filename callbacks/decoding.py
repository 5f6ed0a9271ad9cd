"""How much a model speeds up its own decoding: drafts accepted on held-out text, while it learns and at the end."""

import math
from typing import Annotated

import lightning.pytorch as pl
import torch
from torch import Tensor
from typing_extensions import override

from callbacks.base import ProbeCallback, When
from mtp_lightning.decoding.compiled.compiler import wanted
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.measure import compare
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.ranges import Kept, Range, check_ranges


class DecodingProbe(ProbeCallback):
    """Decodes held-out prompts greedily, plainly and self-speculatively with all heads, in float32, and logs

    - `decode/tokens_per_forward`: accepted tokens per forward (table S2; 1 for n_future = 1, and for kinds without
      heads to draft with); of text also `decode/bytes_per_forward`, which compares between tokenizers;
    - `decode/acceptance/head_i`, from the second head on: the share of its drafts that were accepted, of those whose
      turn came;
    - `decode/speedup`: plain seconds over self-speculative seconds, the median over prompts (`decoding.measure`);
    - `decode/mismatches`: prompts whose two texts differ, which in float32 has to be 0.

    Args:
        prompts: decoded at the end of training.
        validation_prompts: decoded before that, the first ones of these; 0 leaves it at the end.
        prompt_tokens: length of a prompt.
        new_tokens: length of its continuation.
        when: every so many steps, "log" (spaced) or at every "validation".
    """

    name = "decoding"

    def __init__(
        self,
        prompts: Kept = 8,
        prompt_tokens: Kept = 64,
        new_tokens: Annotated[int, Range(least=2, most=10**6)] = 128,
        validation_prompts: Annotated[int, Range(least=0, most=10**6)] = 2,
        when: When = "validation",
    ) -> None:
        super().__init__(when)
        check_ranges("DecodingProbe", DecodingProbe, locals())
        self.prompts = prompts
        self.prompt_tokens = prompt_tokens
        self.new_tokens = new_tokens
        self.validation_prompts = validation_prompts
        self._heldout: list[Tensor] = []

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Fetched before training: data without room for a prompt are refused here, not hours later."""
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if hasattr(datamodule, "heldout_prompts"):
            count = max(self.prompts, self.validation_prompts)
            self._heldout = datamodule.heldout_prompts(count, self.prompt_tokens)

    @override
    def is_ready(self, trainer: pl.Trainer) -> bool:
        return bool(self._heldout)

    @override
    def measure(self, trainer: pl.Trainer, model: MTPModel, at_end: bool) -> dict[str, float]:
        prompts = self._heldout[: self.prompts if at_end else self.validation_prompts]
        device = model.embedding.weight.device
        sizes = getattr(getattr(trainer, "datamodule", None), "token_bytes", None)
        return self.decode(model, [prompt.to(device) for prompt in prompts], sizes) if prompts else {}

    def decode(self, model: MTPModel, prompts: list[Tensor], token_bytes: Tensor | None = None) -> dict[str, float]:
        """The metrics over `prompts`, of the same engine however many: a series has one kind of seconds."""
        forwards = 2 * max(self.prompts, self.validation_prompts) * self.new_tokens
        compiled = wanted("auto", model.embedding.weight.device, forwards)
        found = compare(
            Engine(model, dtype=torch.float32, compiled=compiled), prompts, self.new_tokens, token_bytes=token_bytes
        )
        metrics = {
            "decode/tokens_per_forward": found.tokens_per_forward,
            "decode/mismatches": float(len(found.differences)),
        }
        if not math.isnan(found.speedup):
            metrics["decode/speedup"] = found.speedup
        if found.bytes_per_forward is not None:
            metrics["decode/bytes_per_forward"] = found.bytes_per_forward
        shares = {f"decode/acceptance/head_{head}": share for head, share in found.acceptance.items()}
        return metrics | {name: share for name, share in shares.items() if not math.isnan(share)}
