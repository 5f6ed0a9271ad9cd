"""Attention in training: values and gradients of every path of a CPU against the definition, in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from tiny import tiny_backbone
from torch import Tensor

from mtp_lightning.model.attention import CAUSAL_BLOCK, _repeated, block_causal_attention, causal_attention
from mtp_lightning.model.config import HeadKind, HeadsConfig
from mtp_lightning.model.documents import Documents, document_mask
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.objective.heads import model_loss
from mtp_lightning.objective.targets import make_targets

T = 2 * CAUSAL_BLOCK + 44
ROUNDING = {torch.float64: 1e-12, torch.bfloat16: 0.02}
"""Norm of a difference that it may make, over that of the whole."""


def definition(mask: Tensor) -> Callable[..., Tensor]:
    """softmax(q k^T / sqrt(E)) v over what may be seen; each key and value head belongs to as many query heads."""

    def attend(q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor) -> Tensor:
        repeats = q_BHTE.shape[1] // k_BKTE.shape[1]
        k, v = (x.repeat_interleave(repeats, dim=1) for x in (k_BKTE, v_BKTE))
        scores = q_BHTE @ k.transpose(2, 3) / math.sqrt(q_BHTE.shape[3])
        return scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v

    return attend


def check(attention: Callable[..., Tensor], mask: Tensor, dtype: torch.dtype, kv_heads: int, length: int) -> None:
    """Its output, and what the gradients of q, k and v are, for inputs that are exact in `dtype`."""
    generator = torch.Generator().manual_seed(0)
    heads = (4, kv_heads, kv_heads, 4)
    *inputs, weights = (2 * torch.randn(2, count, length, 8, generator=generator) for count in heads)
    found: list[list[Tensor]] = []
    for attend, precision in ((attention, dtype), (definition(mask), torch.float64)):
        leaves = [x.to(dtype).to(precision).requires_grad_() for x in inputs]
        out = attend(*leaves)
        out.backward(weights.to(dtype).to(precision))
        found.append([out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)])
    assert found[0][0].dtype == dtype
    assert_near(*found, share=ROUNDING[dtype])


def assert_near(mine: list[Tensor], theirs: list[Tensor], share: float, least: float = 0.0) -> None:
    assert len(mine) == len(theirs)
    for i, (a, b) in enumerate(zip(mine, theirs)):
        assert (a.double() - b.double()).norm() <= share * b.double().norm() + least, i


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("length", [1, CAUSAL_BLOCK, T])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_blocks_of_rows_have_the_values_and_gradients_of_the_definition(
    dtype: torch.dtype, length: int, kv_heads: int
) -> None:
    """In bfloat16 as training calls it, which takes the blocks."""

    def by_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return block_causal_attention(q, *_repeated(q, k, v))

    attention = causal_attention if dtype == torch.bfloat16 else by_blocks
    check(attention, torch.ones(length, length, dtype=torch.bool).tril(), dtype, kv_heads, length)


def test_so_has_bfloat16_by_documents() -> None:
    """One of them longer than a block, and several that share a span."""
    lengths = ([CAUSAL_BLOCK + 30, T - CAUSAL_BLOCK - 30], [5, 20, CAUSAL_BLOCK + 5, T - CAUSAL_BLOCK - 30])
    documents_BT = torch.stack([torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in lengths])
    documents = Documents(documents_BT)
    assert {span.documents > 1 for row in documents.spans for span in row} == {True, False}

    def by_documents(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return causal_attention(q, k, v, documents)

    check(by_documents, document_mask(documents_BT), torch.bfloat16, kv_heads=2, length=T)


@pytest.mark.slow
@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.filterwarnings("ignore")  # of torch's compiler
@pytest.mark.parametrize("kind", ["parallel", "registers", "sequential", "fetch"])
def test_compiled_layers_have_the_loss_and_the_gradients_of_eager_ones(kind: HeadKind) -> None:
    """Under autocast, as `model.compile` trains; what is fused is rounded less often."""
    heads = HeadsConfig(n_future=2, kind=kind, norms="own" if kind == "sequential" else "shared")
    torch.manual_seed(0)
    model = MTPModel(tiny_backbone(n_kv_heads=1, n_layers=3), heads)
    window = torch.randint(0, 16, (2, CAUSAL_BLOCK + 22 + heads.horizon))
    found: list[list[Tensor]] = []
    for compiled in (False, True):
        if compiled:
            model.compile_layers()
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total = model_loss(model, make_targets(heads, window)).total
        total.backward()
        found.append([total.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) > 10
    assert_near(*found, share=0.03, least=1e-6)  # the gradient of a fetch's first biases is all but 0
