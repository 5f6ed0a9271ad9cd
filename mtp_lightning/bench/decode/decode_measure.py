"""The measurements of `mtp bench decode`: every contender on the same prompts, round by round; speed and exactness."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from mtp_lightning.bench.decode.decode_contenders import Arm, Decode, Run, contenders
from mtp_lightning.bench.decode.decode_report import USE_MTP
from mtp_lightning.bench.harness import count_busy, is_steady, synchronize
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.measure import acceptance, first_difference
from mtp_lightning.model.mtp import MTPModel

Row = dict[str, Any]
OVER = {
    "over_huggingface": "huggingface",
    "over_huggingface_n1": "huggingface n=1",
    "over_use_mtp": USE_MTP,
    "over_llama_cpp": "llama_cpp",
    "over_torch": "torch",
}
"""Key of a row of ours -> the arm whose time it is divided by."""


def bench_decode(
    label: str,
    model: MTPModel,
    prompts: Sequence[Tensor],
    batches: Sequence[int],
    heads_used: Sequence[int],
    new_tokens: int,
    rounds: int,
    dtype: torch.dtype,
    clock: Callable[[], float],
    gate: Callable[[], bool | None],
    progress: Callable[[str], None],
    peers: Mapping[str, Decode] = MappingProxyType({}),
    compiled: bool = False,
    report: Callable[[Sequence[Row]], None] = lambda rows: None,
) -> tuple[list[Row], str]:
    """Rows of one model: every arm at every batch size; and why Hugging Face is missing where it is.

    Rates and their ratios are of whole texts, prompts included; milliseconds of a forward, the cost of a step and the
    share of the roofline of decoding alone.

    Every round decodes the next prompts with all arms, beginning with another one each time. `peers` decode batches of
    one, as they refuse others. `report` gets the rows of each batch size as soon as they are there.
    """
    engines, all_arms, missing = contenders(model, heads_used, new_tokens, dtype, clock, compiled)
    all_arms |= {Arm(name): decode for name, decode in peers.items()}
    rows: list[Row] = []
    for batch in batches:
        arms = {arm: decode for arm, decode in all_arms.items() if arm.name not in peers or batch == 1}
        for arm, decode in arms.items():
            progress(f"{label}, batch {batch}, {arm.label}: warm-up")
            decode([prompt[: -(-len(prompt) // 2)] for prompt in prompts[:batch]])
        runs: dict[Arm, list[Run]] = {arm: [] for arm in arms}
        for number in range(rounds):
            chosen = [prompts[(number * batch + i) % len(prompts)] for i in range(batch)]
            order = list(arms.items())
            for arm, decode in order[number % len(order) :] + order[: number % len(order)]:
                progress(f"{label}, batch {batch}, {arm.label}: round {number + 1} of {rounds}")
                busy = gate()
                runs[arm].append(replace(decode(chosen), busy=busy))
        chosen_rounds = [[prompts[(n * batch + i) % len(prompts)] for i in range(batch)] for n in range(rounds)]
        length = len(prompts[0]) + new_tokens // 2
        bandwidth = {k: read_bandwidth(own.forward_bytes(k, batch, length), clock) for k, own in engines.items()}
        for arm in arms:
            row: Row = {"model": label, "n_future": model.n_future, "n_layers": model.config.n_layers, "batch": batch}
            row |= {"arm": arm.label, "heads_used": arm.heads_used}
            row |= summarize(arm, runs, batch, new_tokens)
            if arm.name != "huggingface n=1":  # that is another model
                precision = engines[1].dtype if arm.name == "ours" else dtype  # compiled layers compute in float32
                row |= exactness(engines[1], chosen_rounds, runs[Arm("ours", 1)], runs[arm], precision)
            if arm.name == "ours" and arm.heads_used != "auto":
                read = engines[arm.heads_used].forward_bytes(arm.heads_used, batch, length)
                reading = read / bandwidth[arm.heads_used]
                row["roofline_tokens_per_second"] = row["tokens_per_forward"] * batch / reading
                row["share_of_roofline"] = 1e3 * reading / row["milliseconds_per_forward"]
                row["bytes_per_token"] = read / batch / row["tokens_per_forward"]
            rows.append(row)
        report(rows[-len(arms) :])
    return rows, missing


def summarize(arm: Arm, runs: Mapping[Arm, Sequence[Run]], batch: int, new_tokens: int) -> Row:
    """Speed of one arm beside plain decoding of the same prompts in the same round."""
    plain, mine = runs[Arm("ours", 1)], runs[arm]
    rates = [batch * new_tokens / run.seconds for run in mine]
    ratios = [a.seconds / b.seconds for a, b in zip(plain, mine)]
    # texts differ in how many drafts are accepted, so ours is steady when its forwards are
    paces = [1 / run.seconds_per_forward if run.generations else 1 / run.seconds for run in mine]
    busy = count_busy([run.busy for run in mine])
    row: Row = {
        "tokens_per_second": median(rates),
        "best_tokens_per_second": max(rates),
        "speedup": median(ratios),
        "best_speedup": max(ratios),
        "steady": is_steady(len(mine), busy, median(paces) / max(paces)),
        "busy": busy,
    }
    for key, name in OVER.items():
        if arm.name == "ours" and Arm(name) in runs:
            row[key] = median(a.seconds / b.seconds for a, b in zip(runs[Arm(name)], mine))
    if arm.name == USE_MTP:
        row["tokens_per_forward"] = len(mine) * (new_tokens - 1) / (sum(run.forwards for run in mine) - len(mine))
    generations = [generation for run in mine for generation in run.generations]
    steps = [step for generation in generations for step in generation.steps]
    if steps:
        row["tokens_per_forward"] = sum(len(step.tokens) for step in steps) / len(steps)
        row["prompt_milliseconds"] = 1e3 * median(run.prompt_seconds for run in mine)
        row["milliseconds_per_forward"] = 1e3 * median(run.seconds_per_forward for run in mine)
        ratio = [b.seconds_per_forward / a.seconds_per_forward for a, b in zip(plain, mine)]
        row["step_cost"] = median(ratio)
        row["efficiency"] = row["speedup"] / row["tokens_per_forward"]
        depth = max(len(step.block) for step in steps)
        row["acceptance"] = list(acceptance(generations, range(1, depth + 1)).values())
    return row


def exactness(
    engine: Engine,
    prompts: Sequence[Sequence[Tensor]],
    plain: Sequence[Run],
    mine: Sequence[Run],
    precision: torch.dtype,
) -> dict[str, int]:
    """Texts equal to plain decoding's; and the others, by whether the two best logits were tied where they part.

    Args:
        precision: in which `mine` were computed.
    """
    counts = {"texts": 0, "equal": 0, "ties": 0, "different": 0}
    for batch, a, b in zip(prompts, plain, mine):
        for prompt, theirs, text in zip(batch, a.texts, b.texts):
            difference = first_difference(engine, prompt, theirs, text, precision)
            kind = "equal" if difference is None else "ties" if difference.tie else "different"
            counts[kind] += 1
            counts["texts"] += 1
    return counts


def read_bandwidth(nbytes: int, clock: Callable[[], float]) -> float:
    """Bytes a second at which this machine reads that many bytes again and again; the best of 5."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = torch.ones(max(nbytes // 4, 1), device=device)
    repeats = max(2, 2**28 // nbytes)
    best = float("inf")
    for _ in range(5):
        synchronize(device)
        started = clock()
        for _ in range(repeats):
            data.sum()
        synchronize(device)
        best = min(best, (clock() - started) / repeats)
    return nbytes / best
