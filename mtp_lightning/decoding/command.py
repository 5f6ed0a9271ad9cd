"""`mtp generate`: continue a prompt with a checkpoint's model, streaming."""

import json as json_module
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mtp_lightning.errors import InputError

if TYPE_CHECKING:
    from mtp_lightning.data.tokenizer import Tokenizer


def generate_command(
    ckpt: str,
    prompt: str | None = None,
    max_new_tokens: int = 256,
    decoding: Literal["speculative", "greedy"] = "speculative",
    heads_used: int | None = None,
    json: str | None = None,
) -> None:
    """Continue a prompt with a checkpoint's model; the text goes to standard output, figures to standard error.

    Args:
        ckpt: Checkpoint, or a file of `mtp export`, or the folder of a run, of which the newest checkpoint is taken.
        prompt: Text to continue (needed); `-` reads standard input.
        max_new_tokens: Most tokens to add; an end-of-document token ends the text earlier.
        decoding: greedy: one token per forward. speculative: the same text, drafted by the further heads.
        heads_used: Heads that draft, at most the model's n_future (the default, where they can).
        json: File to write the text and the figures to as well.
    """
    from mtp_lightning.checkpoint import find_checkpoint, load_model

    if prompt is None:
        raise InputError("--prompt is missing: the text to continue, or - to read it from standard input")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}: it has to be at least 1")
    model, tokenizer, _ = load_model(find_checkpoint(Path(ckpt)))
    most = model.heads_config.max_heads_used
    k = 1 if decoding == "greedy" else most if heads_used is None else heads_used

    import torch

    from mtp_lightning.decoding.greedy import Generation, Step, stream

    text = sys.stdin.read() if prompt == "-" else prompt
    ids = torch.tensor(tokenizer.encode(text), dtype=torch.long)
    printer = _Printer(tokenizer, ids.tolist())
    sys.stdout.write(text)
    started = time.perf_counter()
    steps: list[Step] = []
    for step in stream(model, ids, max_new_tokens, k, stop_ids=(tokenizer.eos_id,)):
        steps.append(step)
        printer.write([token for token in step.tokens if token != tokenizer.eos_id])
    seconds = time.perf_counter() - started
    printer.finish()
    out = Generation([token for step in steps for token in step.tokens], [step for step in steps if step.block])
    figures = {
        "tokens": len(out.tokens),
        "forwards": len(out.steps),
        "tokens_per_forward": out.tokens_per_forward if out.steps else None,
        "tokens_per_second": len(out.tokens) / seconds,
        "heads_used": k,
    }
    print(
        f"{figures['tokens']} tokens, {out.tokens_per_forward:.2f} tokens per forward with {k} of "
        f"{model.n_future} heads, {figures['tokens_per_second']:.0f} tokens/s",
        file=sys.stderr,
    )
    if json:
        Path(json).write_text(json_module.dumps({"text": printer.text, "ids": out.tokens} | figures, indent=2) + "\n")


class _Printer:
    """Prints tokens as text as soon as the text is settled: half a UTF-8 character waits for its other half."""

    def __init__(self, tokenizer: "Tokenizer", prompt: list[int]) -> None:
        self.tokenizer = tokenizer
        self.ids = prompt  # decoded along: a tokenizer may treat the first word of a text in a way of its own
        self.start = len(tokenizer.decode(prompt))
        self.text = ""

    def write(self, ids: list[int]) -> None:
        self.ids += ids
        whole = self.tokenizer.decode(self.ids)
        self._print(whole[:-1] if whole.endswith("\ufffd") else whole)

    def finish(self) -> None:
        """Print what never settled, and end the line."""
        self._print(self.tokenizer.decode(self.ids))
        sys.stdout.write("\n")

    def _print(self, whole: str) -> None:
        sys.stdout.write(whole[self.start + len(self.text) :])
        sys.stdout.flush()
        self.text = whole[self.start :]
