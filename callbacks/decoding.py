"""How much a model speeds up its own decoding: drafts accepted on held-out text, measured at the end of training."""

import time
from statistics import median

import lightning.pytorch as pl
import torch
from torch import Tensor
from typing_extensions import override

from mtp_lightning.decoding.greedy import Generation, generate
from mtp_lightning.errors import InputError
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.strategies.gather import full_model


class DecodingProbe(pl.Callback):
    """Decodes held-out prompts greedily, plainly and self-speculatively with all heads, in float32, and logs

    - `decode/tokens_per_forward`: accepted tokens per forward (table S2; 1 for n_future = 1, and for heads that
      do not draft);
    - `decode/speedup`: plain seconds over self-speculative seconds, the median over prompts, the two in turns, each
      first as often as the other; seconds of the processor where torch has one CPU thread, else of the clock;
    - `decode/mismatches`: prompts whose two texts differ, which in float32 has to be 0.

    Weights, mode, random state and gradients stay as they were. Only rank zero decodes, of sharded weights a copy.
    """

    def __init__(self, prompts: int = 8, prompt_tokens: int = 64, new_tokens: int = 128) -> None:
        for key, value, least in (
            ("prompts", prompts, 1),
            ("prompt_tokens", prompt_tokens, 1),
            ("new_tokens", new_tokens, 2),
        ):
            if value < least:
                raise InputError(f"DecodingProbe.{key} is {value}: it has to be at least {least}")
        self.prompts = prompts
        self.prompt_tokens = prompt_tokens
        self.new_tokens = new_tokens
        self._heldout: list[Tensor] = []

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Fetched before training: data without room for a prompt are refused here, not hours later."""
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if hasattr(datamodule, "heldout_prompts"):
            self._heldout = datamodule.heldout_prompts(self.prompts, self.prompt_tokens)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._heldout:
            return
        own = pl_module.model
        assert isinstance(own, MTPModel)
        was_training = own.training
        model = full_model(trainer, pl_module)
        if model is None:
            return
        try:
            metrics = self.measure(model, [prompt.to(pl_module.device) for prompt in self._heldout])
        finally:
            own.train(was_training)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})

    def measure(self, model: MTPModel, prompts: list[Tensor]) -> dict[str, float]:
        """The three metrics over `prompts`; a warm-up decode comes first, uncounted."""
        for heads_used in (1, model.heads_config.max_heads_used):
            generate(model, prompts[0], self.new_tokens, heads_used)
        drafting = model.heads_config.max_heads_used
        ratios, accepted, forwards, mismatches = [], 0, 0, 0
        for i, prompt in enumerate(prompts):
            runs = {}
            for name in ("plain", "drafted") if i % 2 else ("drafted", "plain"):
                runs[name] = self._timed(model, prompt, heads_used=1 if name == "plain" else drafting)
            (plain, plain_seconds), (drafted, drafted_seconds) = runs["plain"], runs["drafted"]
            ratios.append(plain_seconds / drafted_seconds)
            accepted += sum(len(step.tokens) for step in drafted.steps)
            forwards += len(drafted.steps)
            mismatches += plain.tokens != drafted.tokens
        return {
            "decode/tokens_per_forward": accepted / forwards,
            "decode/speedup": median(ratios),
            "decode/mismatches": float(mismatches),
        }

    def _timed(self, model: MTPModel, prompt: Tensor, heads_used: int) -> tuple[Generation, float]:
        one_thread = prompt.device.type == "cpu" and torch.get_num_threads() == 1
        clock = time.process_time if one_thread else time.perf_counter
        start = clock()
        out = generate(model, prompt, self.new_tokens, heads_used)
        return out, clock() - start
