"""Attention inside documents without a T x T mask equals attention under one, forward and gradients."""

import warnings

import pytest
import torch
from tiny import VARIANTS, tiny_backbone
from torch import Tensor

from mtp_lightning.model import documents as module
from mtp_lightning.model.attention import causal_attention
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.documents import Documents, Span, attention_by_flex, document_mask
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.objective.heads import model_loss
from mtp_lightning.objective.targets import make_targets

LENGTHS = {
    "one": [[40]],
    "short": [[1] * 40],
    "mixed": [[3, 1, 20, 2, 2, 12], [40]],
    "padded": [[9, 9, 22], [17, 23]],
}


def ids(lengths: list[list[int]]) -> Tensor:
    return torch.stack([torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in lengths])


def test_short_documents_share_a_span(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPAN", 4)
    assert Documents(ids([[5, 1, 2, 1, 6, 2]])).spans == [[Span(5, 1), Span(4, 3), Span(6, 1), Span(2, 1)]]


def test_an_id_that_comes_again_is_another_document() -> None:
    documents = Documents(torch.tensor([[7, 7, 3, 7]]))
    assert documents.numbered_BT.tolist() == [[0, 0, 1, 2]]
    assert documents.mask[0, 0, 3].tolist() == [False, False, False, True]


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_spans_equal_the_mask(name: str, kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPAN", 8)
    documents_BT = ids(LENGTHS[name])
    B, T = documents_BT.shape
    results = []
    for mask in (Documents(documents_BT), document_mask(documents_BT)):
        generator = torch.Generator().manual_seed(0)
        q, k, v = (
            torch.randn(B, heads, T, 8, dtype=torch.float64, generator=generator, requires_grad=True)
            for heads in (4, kv_heads, kv_heads)
        )
        out = causal_attention(q, k, v, mask)
        out.square().sum().backward()
        results.append([out, q.grad, k.grad, v.grad])
    for ours, masked in zip(*results):
        torch.testing.assert_close(ours, masked, rtol=1e-12, atol=1e-12)


def test_flex_attention_equals_the_mask() -> None:
    """Forward: its backward runs on a GPU alone."""
    documents_BT = ids([[100, 30, 70], [200]])
    q, k, v = torch.randn(2, 4, 200, 16), torch.randn(2, 2, 200, 16), torch.randn(2, 2, 200, 16)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of being slow where it is not compiled
        flex = attention_by_flex(q, k, v, Documents(documents_BT))
    torch.testing.assert_close(flex, causal_attention(q, k, v, document_mask(documents_BT)))


@pytest.mark.parametrize("kind", ["parallel", "sequential", "anticausal", "order", "future_summary"])
def test_trunk_and_heads_learn_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every weight's gradient, against a model that is given the mask."""
    monkeypatch.setattr(module, "SPAN", 4)
    heads: HeadsConfig = VARIANTS[kind]
    torch.manual_seed(0)
    model = MTPModel(tiny_backbone(n_layers=5, attend_across_documents=False), heads).double()
    window, documents = torch.randint(0, 16, (2, 16 + heads.horizon)), ids([[6, 2, 11], [3, 3, 13]])
    documents = documents[:, : window.shape[1]]
    targets = make_targets(heads, window, documents)
    found = []
    for masked in (False, True):
        if masked:
            monkeypatch.setattr("mtp_lightning.model.mtp.Documents", document_mask)
        model.zero_grad()
        total = model_loss(model, targets, documents[:, :16]).total
        total.backward()
        found.append([total, *(p.grad for p in model.parameters())])
    for ours, expected in zip(*found):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
    assert sum(bool(grad.any()) for grad in found[0][1:]) > 10
