"""`mtp data sample`: a model's own continuations as training data, for heads that are added to a finished model."""

import json as json_module
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mtp_lightning.errors import InputError
from mtp_lightning.files import check_json, write_text
from mtp_lightning.machine import check_device

if TYPE_CHECKING:
    from mtp_lightning.data.tokens.samples import Ids


def sample_command(
    ckpt: str,
    prompts: str | None = None,
    out: str | None = None,
    samples: int = 1,
    max_new_tokens: int = 256,
    prompt_tokens: int = 32,
    limit: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    heads_used: int | None = None,
    batch_size: int = 16,
    device: Literal["cpu", "cuda"] = "cpu",
    validation_fraction: float = 0.05,
    split_seed: int = 0,
    json: str | None = None,
) -> None:
    """Write a model's continuations of prompts as token shards, in which the continuations alone are trained on.

    Sampling is exact, whatever drafts: the model's own distribution. A run that was killed goes on when the same
    command is given again, and ends with the same bytes.

    Args:
        ckpt: Checkpoint, or a file of `mtp export`, or the folder of a run, of which the newest checkpoint is taken.
        prompts: JSON rows with `prompt`, a .txt file with one on each line, or a folder of shards, `:train` or
            `:validation` after it: of pairs their questions, of documents their first tokens (needed).
        out: Folder of shards to make; must not exist (needed).
        samples: Continuations of each prompt.
        max_new_tokens: Most tokens to add; an end-of-document token ends the text earlier.
        prompt_tokens: How much of a document of plain shards is its prompt.
        limit: Take so many different prompts only.
        temperature: 0 takes the best token; 1 samples from the model's own distribution.
        top_k: Sample among that many most probable tokens.
        top_p: Sample among the fewest most probable tokens of this probability together (nucleus).
        seed: Of the samples, together with prompt and number: more samples leave earlier ones as they are.
        heads_used: Heads that draft; by default all that can. The text is the same.
        batch_size: Prompts that are continued together.
        device: Where the model runs.
        validation_fraction: Part of the prompts, in expectation, whose samples are for validation.
        split_seed: Another seed, another choice of validation prompts.
        json: File to write the printed figures to as well.
    """
    if prompts is None or out is None:
        raise InputError("--prompts and --out are needed: what to continue, and the folder of shards to make")
    for name, number in {"samples": samples, "max_new_tokens": max_new_tokens, "prompt_tokens": prompt_tokens,
                         "limit": limit, "batch_size": batch_size}.items():  # fmt: skip
        if number is not None and not 1 <= number <= 10**6:
            raise InputError(f"{name} is {number}: it has to be at least 1 and at most 1,000,000")
    directory = Path(out)
    if directory.exists():
        raise InputError(f"out: '{out}' exists already; remove it, or choose another folder")
    check_json(json, out=out, prompts=prompts, ckpt=ckpt)
    check_device(device)

    import torch

    from mtp_lightning.checkpoints.files import load_model
    from mtp_lightning.checkpoints.select import find_checkpoint
    from mtp_lightning.checkpoints.verify import content_hash
    from mtp_lightning.data.corpora.account import Account
    from mtp_lightning.data.tokens.prepare import ShardSettings
    from mtp_lightning.data.tokens.samples import SampleLog, batches, prompt_name, read_prompts
    from mtp_lightning.decoding.choosing import Sampling
    from mtp_lightning.decoding.engine import Engine

    settings = ShardSettings(validation_fraction, split_seed)
    chosen = Sampling(temperature, top_k, top_p, seed)
    loaded = load_model(find_checkpoint(Path(ckpt)))
    account, kept = Account(), list["Ids"]()
    room = None if loaded.context is None else loaded.context - max_new_tokens
    for prompt in read_prompts(prompts, loaded.tokenizer, prompt_tokens, limit, tuple(loaded.begin_ids)):
        if room is not None and len(prompt) > room:
            account.leave_out(f"prompts longer than {max(room, 0)} tokens", prompt_name(prompt))
        else:
            kept.append(prompt)
    if not kept:
        raise InputError(
            f"prompts: none has room for max_new_tokens = {max_new_tokens} in the windows of {loaded.context} tokens "
            "that the model was trained on: take fewer, or shorter prompts"
        )
    if len(kept) == 1:
        raise InputError("prompts: there is one prompt only, and its samples are all on one side of a split: give two")
    engine = Engine(loaded.model.to(device), heads_used, torch.float32)
    asked = batches(kept, samples, batch_size)
    made_with = {
        "model": content_hash(loaded.model), "prompts": _hash(map(prompt_name, kept)), "samples": samples,
        "max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed,
        "batch_size": batch_size, "heads_used": engine.heads_used, **({} if device == "cpu" else {"device": device}),
    }  # fmt: skip
    log = SampleLog(directory, made_with, asked, loaded.model.config.vocab_size)
    try:
        figures = _write(log, asked, engine, loaded.tokenizer, max_new_tokens, chosen)
    finally:
        log.close()
    meta = log.finish(directory, asked, loaded.tokenizer, {"kind": "samples", **made_with}, settings, account)
    figures = {"prompts": len(kept), "samples": len(kept) * samples, **figures, "fingerprint": meta.fingerprint}
    shown = ", ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in figures.items()
    )
    print(f"{out}: {shown}; left out: {account.missing() or 'nothing'}")
    if json is not None:
        content = {"directory": out, **figures, "left_out": account.plain()["left_out"]}
        write_text(Path(json), json_module.dumps(content, indent=1) + "\n")


def _write(log: Any, asked: Any, engine: Any, tokenizer: Any, max_new_tokens: int, chosen: Any) -> dict[str, Any]:
    """The batches that the log has not; figures of those."""
    from dataclasses import replace

    import torch

    from mtp_lightning.data.tokens.samples import sample_seed
    from mtp_lightning.data.tokens.token_bytes import token_bytes
    from mtp_lightning.decoding.generate import count_bytes, generate

    sizes = token_bytes(tokenizer)
    tokens = forwards = accepted = bytes_ = 0
    started = time.perf_counter()
    with _progress(len(asked)) as report:
        for number, batch in enumerate(asked):
            if number >= len(log.done):
                seeds = tuple(sample_seed(chosen.seed, prompt, batch.sample) for prompt in batch.prompts)
                ids = [torch.tensor(prompt, device=engine.device) for prompt in batch.prompts]
                made = generate(engine, ids, max_new_tokens, None, (tokenizer.eos_id,), replace(chosen, seeds=seeds))
                log.add([tuple(generation.tokens) for generation in made])
                tokens += sum(len(generation.tokens) for generation in made)
                forwards += sum(len(generation.steps) for generation in made)
                accepted += sum(len(step.tokens) for generation in made for step in generation.steps)
                bytes_ += sum(count_bytes(generation.steps, sizes) for generation in made)
            report(number + 1)
    seconds = time.perf_counter() - started
    return {
        "new_tokens": tokens,
        "tokens_per_forward": round(accepted / forwards, 3) if forwards else None,
        "bytes_per_forward": round(bytes_ / forwards, 3) if forwards else None,
        "tokens_per_second": round(tokens / seconds) if tokens else None,
    }


def _hash(names: Iterator[str]) -> str:
    import hashlib

    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


@contextmanager
def _progress(n_batches: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, if that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("sampling", total=n_batches)
        yield lambda done: progress.update(task, completed=done, description=f"sampling, batch {done:,}")
