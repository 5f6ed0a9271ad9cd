"""`mtp generate`: continue a prompt with a checkpoint's model, streaming."""

import json as json_module
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mtp_lightning.errors import InputError
from mtp_lightning.files import check_json, write_text
from mtp_lightning.machine import check_device

if TYPE_CHECKING:
    from mtp_lightning.data.tokens.tokenizer import Tokenizer
    from mtp_lightning.decoding.generate import Step


MOST_NEW_TOKENS = 1_000_000
"""A cache is made for all of them at the start."""


def generate_command(
    ckpt: str,
    prompt: str | None = None,
    prefix: str | None = None,
    suffix: str | None = None,
    mode: Literal["psm", "spm"] = "psm",
    max_new_tokens: int = 256,
    decoding: Literal["speculative", "greedy"] = "speculative",
    heads_used: int | Literal["auto"] = "auto",
    tree: list[int] | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    accept: Literal["match", "ratio"] = "match",
    dtype: Literal["fp32", "bf16"] = "fp32",
    device: Literal["cpu", "cuda"] = "cpu",
    compile: bool | Literal["auto"] = "auto",
    show_drafts: bool = False,
    beyond_context: bool = False,
    json: str | None = None,
) -> None:
    """Continue a prompt with a checkpoint's model, or write what is missing between a prefix and a suffix; the text
    goes to standard output, figures to standard error.

    Args:
        ckpt: Checkpoint, or a file of `mtp export`, or the folder of a run, of which the newest checkpoint is taken.
        prompt: Text to continue (needed, but for infilling); `-` reads standard input.
        prefix: Infilling, by models that were trained with data.infilling: the text before what is missing.
        suffix: The text after it.
        mode: Of infilling: psm asks with the prefix first, spm with the suffix first.
        max_new_tokens: Most tokens to add; an end-of-document token ends the text earlier.
        decoding: greedy: plainly, one token per forward. speculative: the same text, drafted by the further heads.
        heads_used: Heads that draft, at most the model's n_future; auto takes as many as pay, measured on the way.
        tree: Candidates for each draft, [3, 2] for 3 first drafts and 2 after each; one each without it.
        temperature: 0 takes the best token; above, tokens are sampled, 1 from the model's own distribution.
        top_k: Sample among that many most probable tokens.
        top_p: Sample among the fewest most probable tokens of this probability together (nucleus).
        seed: Of the samples; with accept: match a seed gives one text, with drafts and without.
        accept: Sampling: match takes drafts while they are what head 1 samples; ratio by ratio of probabilities, with
            heads_used auto by all heads, as a text depends on their number.
        dtype: Precision; in fp32 drafting changes no text, in bf16 near ties may fall otherwise.
        device: Where the model runs.
        compile: Decode by layers compiled for this processor, some seconds the first time; auto does for long texts.
        show_drafts: Colour accepted drafts green, and show rejected ones struck through in red.
        beyond_context: Take a prompt longer than the windows that the model was trained on.
        json: File to write the text and the figures to as well.
    """
    from mtp_lightning.checkpoints.files import load_model
    from mtp_lightning.checkpoints.select import find_checkpoint

    fills = prefix is not None or suffix is not None
    if prompt is None and not fills:
        raise InputError("--prompt is missing: the text to continue, or - to read it from standard input")
    if prompt is not None and fills:
        raise InputError("--prompt is continued, and between --prefix and --suffix is filled in: leave one of them out")
    check_json(json, ckpt=ckpt)
    if decoding == "greedy" and (heads_used not in ("auto", 1) or tree):
        given = f"heads_used is {heads_used}" if heads_used not in ("auto", 1) else f"tree is {tree}"
        raise InputError(f"{given}, and decoding is greedy, which drafts nothing: leave one of them out")
    if not 1 <= max_new_tokens <= MOST_NEW_TOKENS:
        raise InputError(f"max_new_tokens is {max_new_tokens}: it has to be at least 1 and at most {MOST_NEW_TOKENS}")
    check_device(device)
    loaded = load_model(find_checkpoint(Path(ckpt)))
    model, tokenizer = loaded.model.to(device), loaded.tokenizer

    import torch

    from mtp_lightning.data.tokens.token_bytes import token_bytes
    from mtp_lightning.decoding.choosing import Sampling
    from mtp_lightning.decoding.compiled.compiler import wanted
    from mtp_lightning.decoding.engine import Engine
    from mtp_lightning.decoding.generate import Generation, Step, count_bytes, stream

    stops, end = [tokenizer.eos_id], tokenizer.eos_id
    before, after = "", ""
    if fills:
        before, after = _typed(prefix or "", "--prefix"), _typed(suffix or "", "--suffix")
        asked, end = _infilling(tokenizer, before, after, mode)
        stops.append(end)
    else:
        before = _standard_input() if prompt == "-" else _typed(prompt or "", "--prompt")
        asked = tokenizer.encode(before)
    ids = torch.tensor([*loaded.begin_ids, *asked], dtype=torch.long, device=device)
    _check_length(len(ids), max_new_tokens, loaded.context, beyond_context)
    most = model.heads_config.max_heads_used
    by_ratio = accept == "ratio" and temperature > 0  # where a text depends on how many heads draft
    k = 1 if decoding == "greedy" else most if heads_used == "auto" and (tree or by_ratio) else heads_used
    sampling = Sampling(temperature, top_k, top_p, seed, accept)
    compiled = wanted(compile, model.embedding.weight.device, max_new_tokens)
    precision = torch.float32 if dtype == "fp32" else torch.bfloat16
    engine = Engine(model, most if k == "auto" else k, precision, compiled=compiled)
    if most == 1 and decoding == "speculative":
        why = "one head" if model.n_future == 1 else f"no heads to draft with (kind '{model.heads_config.kind}')"
        print(f"this model has {why}: plain decoding", file=sys.stderr)
    printer = _Printer(tokenizer, tokenizer.encode(before), show_drafts)
    steps: list[Step] = []
    made = 0
    started = time.perf_counter()
    for step in stream(engine, [ids], max_new_tokens, k, stops, sampling, tree):
        if not steps:
            sys.stdout.write(before)
        steps.append(step)
        made += len(step.tokens)
        printer.write(
            [token for token in step.tokens if token not in stops],
            _rejected(step, tree, last=made >= max_new_tokens or step.tokens[-1] in stops),
        )
    seconds = time.perf_counter() - started
    printer.finish(after)
    out = Generation([token for step in steps for token in step.tokens], [step for step in steps if step.block])
    bytes_per_forward = count_bytes(out.steps, token_bytes(tokenizer)) / max(len(out.steps), 1)
    figures = {
        "tokens": len(out.tokens),
        "forwards": len(out.steps),
        "tokens_per_forward": out.tokens_per_forward if out.steps else None,
        "bytes_per_forward": bytes_per_forward if out.steps else None,
        "tokens_per_second": len(out.tokens) / seconds,
        "heads_used": k,
        "compiled": compiled,
        "seconds": seconds,
    }
    if fills:
        figures["joined"] = out.tokens[-1:] == [end]
        if not figures["joined"]:
            print(
                f"after {len(out.tokens)} tokens the middle had not ended: it does not join the suffix", file=sys.stderr
            )
    heads = f"{f'up to {most}' if k == 'auto' else k} of {model.n_future} heads"
    rate = f"{out.tokens_per_forward:.2f} tokens per forward with {heads} ({bytes_per_forward:.2f} bytes), "
    rate = rate if out.steps else ""
    print(f"{figures['tokens']} tokens, {rate}{figures['tokens_per_second']:.0f} tokens/s", file=sys.stderr)
    if json:
        content = {"text": printer.text, "ids": out.tokens} | figures
        write_text(Path(json), json_module.dumps(content, indent=2) + "\n")


def _standard_input() -> str:
    """As UTF-8, whatever the locale says.

    Raises:
        InputError: it is not.
    """
    return _decoded(sys.stdin.buffer.read(), "standard input")


def _typed(text: str, flag: str) -> str:
    """An argument that Python could not decode by the locale holds its bytes as surrogates."""
    try:
        return _decoded(text.encode("utf-8", errors="surrogateescape"), flag)
    except UnicodeEncodeError as error:
        raise InputError(f"{flag} is not text: {error.reason} at character {error.start}") from error


def _infilling(tokenizer: "Tokenizer", before: str, after: str, mode: Literal["psm", "spm"]) -> tuple[list[int], int]:
    """(what asks for the middle, the token that ends it).

    Raises:
        InputError: the model has no tokens for it.
    """
    from mtp_lightning.data.tokens.tokenizer import encode_after
    from mtp_lightning.data.transforms.infilling import infilling_prompt, sentinels

    marks = sentinels(tokenizer)
    if marks is None:
        raise InputError(
            "--prefix and --suffix: the model's tokenizer has no infilling tokens, so the model never learned to look "
            "at what comes after; train it with data.infilling, or continue a --prompt"
        )
    return infilling_prompt(tokenizer.encode(before), encode_after(tokenizer, after), marks, mode), marks.end


def _decoded(content: bytes, what: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{what} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _check_length(prompt: int, new: int, context: int | None, beyond: bool) -> None:
    """
    Raises:
        InputError: a prompt longer than what the model was trained on.
    """
    if context is None or prompt + new <= context:
        return
    if prompt > context and not beyond:
        raise InputError(
            f"the prompt has {prompt} tokens, and the model was trained on windows of {context}: give a shorter one, "
            "or --beyond_context true to try"
        )
    print(f"from token {context} on the text is longer than the model was trained on", file=sys.stderr)


def _rejected(step: "Step", tree: list[int] | None, last: bool) -> list[int]:
    """The drafts of a chain that were not accepted; after the end of a text nobody knows."""
    return [] if tree or last else step.block[len(step.tokens) :]


GREEN, RED, PLAIN = "\x1b[32m", "\x1b[31;9m", "\x1b[0m"


class _Printer:
    """Prints tokens as text as soon as no further token changes it: half a character waits for its other half."""

    def __init__(self, tokenizer: "Tokenizer", before: list[int], show_drafts: bool) -> None:
        self.tokenizer = tokenizer
        self.ids = before  # decoded along: a tokenizer may treat the first word of a text in a way of its own
        self.start = len(tokenizer.decode(before))
        self.text = ""
        self.show_drafts = show_drafts

    def write(self, ids: list[int], rejected: list[int]) -> None:
        """A step's tokens, of which all but the first were drafts, and the drafts that were rejected."""
        if not self.show_drafts:
            self._settle(ids)
            return
        self._settle(ids[:1])
        self._settle(ids[1:], GREEN)
        if rejected:
            shown = self.tokenizer.decode([*self.ids, *rejected])[len(self.tokenizer.decode(self.ids)) :]
            shown = shown.replace("\n", "\u21b5").replace("\ufffd", "?")
            sys.stdout.write(f"{RED}{shown}{PLAIN}")

    def finish(self, after: str = "") -> None:
        """Print what never settled, and end the line.

        Args:
            after: goes before the line's end.
        """
        self._print(self.tokenizer.decode(self.ids))
        sys.stdout.write(f"{after}\n")

    def _settle(self, ids: list[int], colour: str = "") -> None:
        self.ids += ids
        self._print(self.tokenizer.settled(self.ids), colour)

    def _print(self, whole: str, colour: str = "") -> None:
        new = whole[self.start + len(self.text) :]
        sys.stdout.write(f"{colour}{new}{PLAIN}" if colour and new else new)
        sys.stdout.flush()
        self.text += new
