"""Who decodes in `mtp bench decode`: our engine, plain and drafting, and `transformers`' `generate` on a Llama."""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtp_lightning.bench.train_contenders import HOW_TO_INSTALL
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.generate import Generation, HeadsUsed, stream
from mtp_lightning.errors import InputError
from mtp_lightning.interop.hf_config import hf_config
from mtp_lightning.interop.hf_names import to_llama_state_dict
from mtp_lightning.model.config import BackboneConfig
from mtp_lightning.model.mtp import MTPModel

Clock = Callable[[], float]


class Arm(NamedTuple):
    """One contender of the table."""

    name: str
    """`ours`; `huggingface` on the layers that our plain decoding runs; `huggingface n=1` on all layers of the
    next-token model with as many parameters (with random weights: speed does not depend on them); `use_mtp`, which is
    Hugging Face's with the further heads; `llama_cpp`; `torch`, our plain decoding without compiled layers."""
    heads_used: HeadsUsed = 1

    @property
    def label(self) -> str:
        return self.name if self.name != "ours" else "plain" if self.heads_used == 1 else f"k = {self.heads_used}"


@dataclass
class Run:
    """One batch of prompts decoded."""

    texts: list[list[int]]
    seconds: float
    generations: list[Generation] = field(default_factory=list)
    """Ours alone."""
    seconds_per_forward: float = float("nan")
    """Of forwards with all rows, without the prompts' and the first one after it; ours alone."""
    prompt_seconds: float = float("nan")
    """Of `seconds`, what reading the prompts and making caches took: all before the first forward; ours alone."""
    forwards: int = 0
    """Of a peer that drafts, the prompt's included."""
    busy: bool | None = None
    """Whether others used the machine when it began; None where that was not looked at."""


Decode = Callable[[Sequence[Tensor]], Run]


def ours(engine: Engine, heads_used: HeadsUsed, new_tokens: int, clock: Clock) -> Decode:
    """Our engine; `heads_used` 1 is plain decoding."""

    def run(prompts: Sequence[Tensor]) -> Run:
        generations = [Generation([], []) for _ in prompts]
        times: list[float] = []
        started, complete = clock(), True
        for step in stream(engine, prompts, new_tokens, heads_used):
            own = generations[step.row]
            own.tokens.extend(step.tokens)
            if step.block:
                own.steps.append(step)
                if complete and len(own.steps) > len(times):  # the first row of another forward
                    times.append(clock())
            complete = complete and len(own.tokens) < new_tokens - 1  # then a row may leave, and forwards are cheaper
        seconds = clock() - started
        each = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else float("nan")
        prompts_took = times[0] - started - each if times else float("nan")
        return Run([generation.tokens for generation in generations], seconds, generations, each, prompts_took)

    return run


def huggingface(model: torch.nn.Module, new_tokens: int, clock: Clock) -> Decode:
    """`generate` with its own cache, greedy, to exactly `new_tokens`."""

    def run(prompts: Sequence[Tensor]) -> Run:
        ids_BT = torch.stack(list(prompts))
        started = clock()
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # its own deprecations
            out_BT = model.generate(  # type: ignore[operator]
                ids_BT,
                attention_mask=torch.ones_like(ids_BT),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
            )
        seconds = clock() - started
        return Run(out_BT[:, ids_BT.shape[1] :].tolist(), seconds)

    return run


def llama(
    backbone: BackboneConfig, n_layers: int, dtype: torch.dtype, device: torch.device, weights: MTPModel | None
) -> torch.nn.Module:
    """`transformers`' class for such layers, Llama's as a rule, with the weights of trunk and head 1 or random ones.

    Raises:
        InputError: the model's path to the next token is not a Llama's.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    state = to_llama_state_dict(weights, drop_heads=True) if weights is not None else None
    auto: Any = AutoModelForCausalLM
    made = auto.from_config(AutoConfig.for_model(**hf_config(backbone, n_layers)))
    if state is not None:
        made.load_state_dict(state)
    made.generation_config.eos_token_id = None
    return made.to(device=device, dtype=dtype).eval()  # type: ignore[no-any-return]


def contenders(
    model: MTPModel,
    heads_used: Sequence[int],
    new_tokens: int,
    dtype: torch.dtype,
    clock: Clock,
    compiled: bool = False,
) -> tuple[dict[int, Engine], dict[Arm, Decode], str]:
    """(our engine for every number of heads, how every arm decodes, why Hugging Face is missing where it is)."""
    engines = {
        k: Engine(model, k, dtype, compiled=compiled) for k in heads_used
    }  # one each: it keeps no keys for heads not in use
    engine = engines[max(heads_used)]
    arms: dict[Arm, Decode] = {Arm("ours", k): ours(own, k, new_tokens, clock) for k, own in engines.items()}
    if max(heads_used) > 1:
        arms[Arm("ours", "auto")] = ours(engine, "auto", new_tokens, clock)
    if compiled:
        arms[Arm("torch")] = ours(Engine(model, 1, dtype), 1, new_tokens, clock)
    try:
        layers = len(model.trunk) + model.heads_config.layers
        made = llama(model.config, layers, dtype, engine.device, model)
        arms[Arm("huggingface")] = huggingface(made, new_tokens, clock)
        if model.n_future > 1:
            large = llama(model.config, model.config.n_layers, dtype, engine.device, None)
            arms[Arm("huggingface n=1")] = huggingface(large, new_tokens, clock)
    except ImportError:
        return engines, arms, f"transformers is not installed: {HOW_TO_INSTALL['transformers']}"
    except InputError as error:
        return engines, arms, str(error)
    return engines, arms, ""


def clock_for(device: torch.device, threads: int) -> Clock:
    """One CPU thread is judged by its processor time, which a busy machine does not lengthen much."""
    if device.type == "cuda":

        def synchronized() -> float:
            torch.cuda.synchronize(device)
            return time.perf_counter()

        return synchronized
    return time.process_time if threads == 1 else time.perf_counter
