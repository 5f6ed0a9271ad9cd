"""The contenders of `mtp bench train`: this platform, plain PyTorch, Hugging Face's Llama, litgpt's GPT.

Every one has the same parameters and, at equal n, the same FLOPs per token. A contender gives its model and a function
from a window of tokens to the loss, which also fills in the gradients; clipping and AdamW are common to all.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.profiler import record_function
from torch.nn import functional as F

from mtp_lightning.bench.plain_model import PlainModel, paper_step
from mtp_lightning.errors import InputError, did_you_mean
from mtp_lightning.interop.hf_config import hf_config
from mtp_lightning.model.config import BackboneConfig, HeadsConfig
from mtp_lightning.model.counts import flops_per_token
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.model.training.recompute import as_recompute, recompute_model
from mtp_lightning.objective.heads import model_loss
from mtp_lightning.objective.targets import make_targets
from mtp_lightning.optimization.adamw import OptimizerConfig, make_adamw

UPDATE = "clipping and optimizer"
"""What a profile calls that part of a step."""


@dataclass(frozen=True)
class Workload:
    """What every contender trains on."""

    backbone: BackboneConfig
    context: int
    batch: int
    bfloat16: bool
    device: str

    @property
    def tokens(self) -> int:
        return self.batch * self.context

    def window(self, n_future: int) -> Tensor:
        """(B, T + n) random tokens, the same for everyone of this n."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch, self.context + n_future)
        return torch.randint(0, self.backbone.vocab_size, shape, generator=generator).to(self.device)

    def forward(self) -> torch.autocast:
        """The precision of a forward pass."""
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.bfloat16)


class Arm(NamedTuple):
    """One row of the table."""

    contender: str
    n_future: int
    compiled: bool
    recompute: str = "none"
    """`model.recompute`, of ours alone."""


class Learner(NamedTuple):
    """A model, and what makes gradients of a window."""

    model: nn.Module
    learn: Callable[[Tensor], Tensor]


def ours(workload: Workload, n_future: int, compiled: bool, recompute: str = "none") -> Learner:
    """`MTPModel` and its objective, as `MTPModule` runs them; `compiled` is its `model.compile`."""
    heads = HeadsConfig(n_future=n_future)
    model = MTPModel(workload.backbone, heads).to(workload.device)
    recompute_model(model, as_recompute(recompute))
    if compiled:
        model.compile_layers()

    def learn(window_BL: Tensor) -> Tensor:
        with workload.forward():
            total = model_loss(model, make_targets(heads, window_BL)).total
        total.backward()  # type: ignore[no-untyped-call]
        return total.detach()

    return Learner(model, learn)


def naive(workload: Workload, n_future: int, compiled: bool) -> Learner:
    """Plain PyTorch with the logits of all heads alive at once; compiled as a whole."""
    model = PlainModel(workload.backbone, n_future, workload.context).to(workload.device)
    loss_of = torch.compile(model.naive_loss, dynamic=False) if compiled else model.naive_loss
    return Learner(model, _single_backward(workload, n_future, loss_of))


def paper(workload: Workload, n_future: int, compiled: bool) -> Learner:
    """Plain PyTorch in the paper's loop over heads; trunk and each head compiled."""
    model = PlainModel(workload.backbone, n_future, workload.context).to(workload.device)
    trunk: Callable[[Tensor], Tensor] = model.run_trunk
    head_loss: Callable[[int, Tensor, Tensor], Tensor] = model.head_loss
    if compiled:
        trunk, head_loss = torch.compile(trunk, dynamic=False), torch.compile(head_loss, dynamic=False)

    def learn(window_BL: Tensor) -> Tensor:
        made = make_targets(HeadsConfig(n_future=n_future), window_BL)
        return paper_step(trunk, head_loss, made.inputs, made.targets, workload.forward)

    return Learner(model, learn)


def huggingface(workload: Workload, n_future: int, compiled: bool) -> Learner:
    """`LlamaForCausalLM` with its own loss; its targets are given shifted, so that no position is lost."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model: nn.Module = LlamaForCausalLM(LlamaConfig(**hf_config(workload.backbone, workload.backbone.n_layers)))
    model = model.to(workload.device)
    run = torch.compile(model, dynamic=False) if compiled else model

    def loss_of(tokens_BT: Tensor, targets_NBT: Tensor) -> Tensor:
        targets_BT = targets_NBT[0].contiguous()
        return run(input_ids=tokens_BT, labels=targets_BT, shift_labels=targets_BT, use_cache=False).loss  # type: ignore[no-any-return]

    return Learner(model, _single_backward(workload, n_future, loss_of))


def litgpt(workload: Workload, n_future: int, compiled: bool) -> Learner:
    """litgpt's `GPT` in Llama's form."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports are its own business
        module = importlib.import_module("litgpt.model")

    backbone = workload.backbone
    config = module.Config(
        block_size=workload.context,
        vocab_size=backbone.vocab_size,
        padded_vocab_size=backbone.vocab_size,
        n_layer=backbone.n_layers,
        n_head=backbone.n_heads,
        n_query_groups=backbone.kv_heads,
        n_embd=backbone.dim,
        intermediate_size=backbone.ffn,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=backbone.norm_eps,
        mlp_class_name="LLaMAMLP",
        rope_base=int(backbone.rope_theta),
    )
    model = module.GPT(config).to(workload.device)
    run = torch.compile(model, dynamic=False) if compiled else model

    def loss_of(tokens_BT: Tensor, targets_NBT: Tensor) -> Tensor:
        return F.cross_entropy(run(tokens_BT).flatten(0, 1).float(), targets_NBT[0].flatten())

    return Learner(model, _single_backward(workload, n_future, loss_of))


def _single_backward(
    workload: Workload, n_future: int, loss_of: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    def learn(window_BL: Tensor) -> Tensor:
        made = make_targets(HeadsConfig(n_future=n_future), window_BL)
        with workload.forward():
            loss = loss_of(made.inputs, made.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    return learn


CONTENDERS: dict[str, Callable[..., Learner]] = {
    "ours": ours,
    "naive": naive,
    "paper": paper,
    "huggingface": huggingface,
    "litgpt": litgpt,
}
NEXT_TOKEN_ONLY = {"huggingface": "transformers", "litgpt": "litgpt"}
"""Contenders without further heads, and the package each needs."""
HOW_TO_INSTALL = {
    "transformers": "pip install 'mtp-lightning[bench]'",
    "litgpt": "pip install --no-deps litgpt: it wants an older jsonargparse than this project runs on",
}


def check_contenders(names: list[str] | None) -> list[str]:
    """
    Raises:
        InputError: a name that is none of CONTENDERS.
    """
    for name in names or ():
        if name not in CONTENDERS:
            known = ", ".join(CONTENDERS)
            raise InputError(f"contenders: there is no '{name}'{did_you_mean(name, CONTENDERS)} (there are {known})")
    return list(CONTENDERS) if names is None else names


def missing_packages(names: list[str]) -> dict[str, str]:
    """Contender -> how to install what it lacks here."""
    lacking = {name: NEXT_TOKEN_ONLY[name] for name in names if name in NEXT_TOKEN_ONLY}
    return {name: HOW_TO_INSTALL[p] for name, p in lacking.items() if importlib.util.find_spec(p) is None}


def without_rows(names: list[str], n_future: list[int]) -> dict[str, str]:
    """Contender -> why `arms` has no row of it."""
    if 1 in n_future:
        return {}
    return {name: f"it predicts one token, and n_future is {n_future}" for name in names if name in NEXT_TOKEN_ONLY}


def arms(
    contenders: list[str], n_future: list[int], modes: Sequence[bool], recomputes: Sequence[str] = ()
) -> list[Arm]:
    """All rows: each contender in each mode (compiled or not), peers that predict one token at n = 1 alone; ours also
    with what `recomputes` says recomputed."""
    return [
        Arm(name, n, compiled, recompute)
        for n in n_future
        for name in contenders
        if n == 1 or name not in NEXT_TOKEN_ONLY
        for compiled in modes
        for recompute in ("none", *(recomputes if name == "ours" else ()))
    ]


def make_step(arm: Arm, workload: Workload) -> tuple[Learner, Callable[[], Tensor]]:
    """A contender and one step of its training: forward, backward, clipping, fused AdamW. The step returns the loss."""
    torch.manual_seed(0)
    if arm.compiled:
        _compile_every_time()
    more = {"recompute": arm.recompute} if arm.contender == "ours" else {}
    learner = CONTENDERS[arm.contender](workload, arm.n_future, arm.compiled, **more)
    learner.model.train()
    window = workload.window(arm.n_future)
    parameters = list(learner.model.parameters())
    optimizer = make_adamw(parameters, OptimizerConfig())

    def step() -> Tensor:
        loss = learner.learn(window)
        with record_function(UPDATE):
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return loss

    return learner, step


def _compile_every_time() -> None:
    """A head, a batch and a vocabulary of another size are each compiled for themselves. Past eight times torch would
    go on with uncompiled code under the name of compiled code."""
    torch._dynamo.config.recompile_limit = 10_000
    torch._dynamo.config.accumulated_recompile_limit = 10_000
    torch._dynamo.config.fail_on_recompile_limit_hit = True


def prepared_step(arm: Arm, workload: Workload) -> Callable[[], object]:
    """A step whose kernels are loaded, code compiled and moments there: what a child process measures."""
    _, step = make_step(arm, workload)
    for _ in range(2):
        step()
    return step


def flops_of(arm: Arm, workload: Workload) -> int:
    """Training FLOPs per token, by formula."""
    return flops_per_token(workload.backbone, HeadsConfig(n_future=arm.n_future), workload.context)
