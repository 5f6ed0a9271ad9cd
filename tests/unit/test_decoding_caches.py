"""What decoding remembers is what reading the accepted text anew would make it remember; and the maps that it runs on
are the model's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampled import one_in
from test_decoding import DRAFTING, random_model
from tiny import VARIANTS, tiny_backbone
from torch import Tensor
from torch.nn import functional as F

from mtp_lightning.decoding import linear
from mtp_lightning.decoding.choosing import Chooser
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.generate import generate
from mtp_lightning.decoding.linear import Linear, can_pack
from mtp_lightning.decoding.positions import PositionTables, Tree
from mtp_lightning.decoding.reference import decode_plainly, head_logits
from mtp_lightning.decoding.session import Session
from mtp_lightning.model.config import SIDE_BY_SIDE, TEACHER_FORCED, HeadsConfig
from mtp_lightning.model.mtp import MTPModel

PACKED = [dtype for dtype in (torch.float32, torch.bfloat16) if can_pack(dtype)]


def close(found: Tensor, expected: Tensor) -> None:
    largest = expected.abs().amax().item() if expected.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * max(10.0, largest))  # each is a sum of such


def of_head(session: Session, head: int) -> Tensor:
    """(layers, 2, B, K, S, E): keys and values of one of heads 2 .. n, however its drafter lays them out."""
    engine, cache = session.engine, session.draft_cache
    assert cache is not None
    if engine.heads.kind in SIDE_BY_SIDE and engine.heads.layers == 1:
        return cache.data.unflatten(3, (engine.heads_used - 1, -1))[:, :, :, head - 2]
    return cache.data.unflatten(0, (engine.heads_used - 1, -1))[head - 2]


def finished(session: Session, head: int, row: int) -> int:
    """How many positions a head has seen for good: those that it read, if it reads on, the tokens of which were certain
    by then. At the last position the token one ahead is, two ahead a draft."""
    seen = session.lengths[row] - session.unread[head][row]
    heads = session.engine.heads
    return max(seen - heads.head_offsets[head - 2] + 1, 0) if heads.kind in TEACHER_FORCED else seen


def check_against_a_fresh_reading(session: Session, texts: list[list[int]], certain: list[int]) -> None:
    assert session.lengths == [len(text) for text in texts]
    for row, text in enumerate(texts):
        T = len(text)
        assert session.text_BS[row, : T + 1].tolist() == [*text, certain[row]]
        fresh = Session(session.engine, [torch.tensor(text)], 1, Chooser())
        assert fresh.read_prompts(session.engine.heads_used) == [certain[row]]
        close(session.path_cache.data[:, :, row, :, :T], fresh.path_cache.data[:, :, 0, :, :T])
        assert session.inputs_BSX is not None
        assert fresh.inputs_BSX is not None
        close(session.inputs_BSX[row, :T], fresh.inputs_BSX[0, :T])
        for head in session.unread if session.draft_cache else ():
            S = finished(session, head, row)
            close(of_head(session, head)[:, :, row, :, :S], of_head(fresh, head)[:, :, 0, :, :S])


@pytest.mark.parametrize("shape", ["chain", "tree"])
@pytest.mark.parametrize("name", one_in(2, DRAFTING))
def test_caches_after_drafts_right_and_wrong_are_those_of_a_fresh_reading(name: str, shape: str) -> None:
    """Of four symbols, so that many a draft is right; rows advance by different amounts, and one leaves."""
    engine = Engine(random_model(DRAFTING[name], seed=1, vocab_size=4, n_kv_heads=1))
    tree = None if shape == "chain" else Tree((2, 2)[: engine.most_tokens - 1])
    most = engine.heads_used
    texts = [torch.randint(0, 4, (length,)).tolist() for length in (1, 7, 3, 5)]
    session = Session(engine, [torch.tensor(text) for text in texts], 40, Chooser(), tree)
    certain = session.read_prompts(most)
    check_against_a_fresh_reading(session, texts, certain)
    sizes = set()
    for i, k in enumerate((most, most, 2, 1, most, most, most) if tree is None else (most,) * 7):
        if i == 5:
            session.remove(1)
            texts[1] = texts.pop()
        advances = session.step(k)
        for text, advance in zip(texts, advances):
            text += advance.accepted
        sizes |= {len(advance.accepted) for advance in advances}
        if i in (1, 3, 4, 6):
            check_against_a_fresh_reading(session, texts, [advance.certain for advance in advances])
    assert 1 in sizes, "wrong drafts were rolled back"
    assert max(sizes) > 1, "right ones were kept"


@pytest.mark.parametrize("name", ["parallel", "leap", "sequential", "causal"])
def test_heads_that_join_late_draft_as_if_they_had_read_all_along(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no head in use will look back to is not read: with rows of any length, that makes no difference."""
    engine = Engine(random_model(DRAFTING[name], seed=1, vocab_size=4))
    assert engine.drafter is not None
    if name in ("parallel", "leap"):
        engine.drafter.reach = 3
    prompts = [torch.randint(0, 4, (length,)) for length in (12, 5, 9)]
    most, found = engine.heads_used, []
    for keeps_all in (False, True):
        monkeypatch.setattr(Session, "keeps_all", keeps_all)
        session = Session(engine, prompts, 60, Chooser())
        session.read_prompts(1)
        blocks = [[advance.block for advance in session.step(k)] for k in (1, 1, 1, 2, 1, 2, most, most, 1, 1, most)]
        session.remove(1)
        blocks += [[advance.block for advance in session.step(k)] for k in (most, 1, 1, 1, most, most)]
        found.append(blocks)
    assert found[0] == found[1]


class Remembering(Chooser):
    """Keeps the logits that drafts come from."""

    def __init__(self) -> None:
        self.drafted: list[Tensor] = []

    def draft(self, logits_BJV: Tensor, rows: slice, targets: list[int]) -> Tensor:
        self.drafted.append(logits_BJV)
        return super().draft(logits_BJV, rows, targets)


def path_logits(engine: Engine, text_T: Tensor) -> Tensor:
    """(T, V): head 1's, at every position."""
    T = text_T.numel()
    tables = PositionTables(T, engine.config, engine.dtype, engine.device)
    h_1TD, _ = engine.run(text_T[None], tables.block([0], Tree.chain(T)), engine.key_values(1, T).layers(slice(0, 1)))
    return engine.logits(h_1TD)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("kv_heads", [2, 1])
@pytest.mark.parametrize("name", one_in(2, VARIANTS))
def test_logits_of_every_head_are_the_models(name: str, kv_heads: int, dtype: torch.dtype) -> None:
    model = random_model(VARIANTS[name], seed=3, n_kv_heads=kv_heads).to(dtype)
    engine, chooser, text = Engine(model, exact_drafts=True), Remembering(), [3, 1, 4, 1, 5, 9, 2, 6]
    assert engine.dtype == dtype
    close(path_logits(engine, torch.tensor(text)), head_logits(model, text, text)[0])
    session = Session(engine, [torch.tensor(text)], 1, chooser)
    session.read_prompts(engine.heads_used)
    known = session.text_BS[0, : len(text) + engine.most_tokens].tolist()
    expected = head_logits(model, text, known)
    offsets = engine.heads.head_offsets[: engine.heads_used]
    found = torch.cat(chooser.drafted, dim=1)[0] if chooser.drafted else []
    assert len(found) == engine.most_tokens - 1
    for offset, logits_V in enumerate(found, start=2):
        head = next(i for i, looks in enumerate(offsets) if looks >= offset)
        close(logits_V, expected[head, len(text) - 1 - (offsets[head] - offset)])


def test_an_engine_in_another_precision_than_its_model() -> None:
    model = random_model(VARIANTS["parallel"], seed=3)
    text = [3, 1, 4, 1, 5, 9, 2, 6]
    engine = Engine(model, dtype=torch.bfloat16)
    assert engine.dtype == torch.bfloat16
    found, expected = path_logits(engine, torch.tensor(text)), head_logits(model, text, text)[0]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.1 * float(expected.abs().max()))
    assert len(generate(engine, [torch.tensor(text)], 5)[0].tokens) == 5


@pytest.mark.parametrize("kind", ["parallel", "causal"])
def test_models_with_tied_embeddings_and_matched_widths_decode_too(kind: str) -> None:
    torch.manual_seed(0)
    heads = HeadsConfig(n_future=3, kind=kind, match="parameters")  # type: ignore[arg-type]
    model = MTPModel(tiny_backbone(n_layers=4, tie_embeddings=True), heads).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.4)
    prompts = [torch.arange(3), torch.arange(7)]
    outs = generate(Engine(model), prompts, 12)
    assert [out.tokens for out in outs] == [decode_plainly(model, prompt, 12) for prompt in prompts]


needs_packing = pytest.mark.skipif(not PACKED, reason="this build of torch cannot prepack")
SHAPES = {"outputs": st.integers(1, 70), "inputs": st.integers(1, 70), "rows": st.integers(1, 40)}


@needs_packing
@settings(max_examples=40, deadline=None)
@given(dtype=st.sampled_from(PACKED or [torch.float32]), seed=st.integers(0, 99), **SHAPES)
def test_a_packed_map_is_the_map(dtype: torch.dtype, seed: int, outputs: int, inputs: int, rows: int) -> None:
    torch.manual_seed(seed)
    weight, x = torch.randn(outputs, inputs).to(dtype), torch.randn(2, rows, inputs).to(dtype)
    packed = Linear(weight, dtype)
    assert packed.packed
    assert packed.nbytes == weight.nbytes
    bound = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-1}
    torch.testing.assert_close(packed(x), F.linear(x, weight), **bound)


@needs_packing
@settings(max_examples=40, deadline=None)
@given(dtype=st.sampled_from(PACKED or [torch.float32]), seed=st.integers(0, 99), **SHAPES)
def test_a_row_of_a_packed_map_is_the_same_to_the_last_bit_with_any_others(
    dtype: torch.dtype, seed: int, outputs: int, inputs: int, rows: int
) -> None:
    torch.manual_seed(seed)
    packed, x_RI = Linear(torch.randn(outputs, inputs), dtype), torch.randn(rows, inputs).to(dtype)
    alone_RO = torch.cat([packed(x_1I) for x_1I in x_RI.split(1)])
    assert torch.equal(packed(x_RI), alone_RO)
    assert torch.equal(packed(x_RI[None, : rows // 2 + 1])[0], alone_RO[: rows // 2 + 1])


@pytest.mark.parametrize("name", ["parallel", "sequential", "anticausal", "leap"])
def test_a_torch_that_cannot_pack_decodes_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "can_pack", lambda dtype: False)
    model = random_model(VARIANTS[name], seed=5)
    engine = Engine(model)
    assert not any(layer.qkv.packed for layer in engine.path.layers)
    prompts = [torch.randint(0, 16, (length,)) for length in (1, 6, 3)]
    outs = generate(engine, prompts, 12)
    assert [out.tokens for out in outs] == [decode_plainly(model, prompt, 12) for prompt in prompts]
    weight, x = torch.randn(5, 3), torch.randn(2, 3)
    assert torch.equal(Linear(weight, torch.float32)(x), F.linear(x, weight))


@pytest.mark.parametrize("error", [AttributeError, RuntimeError, NotImplementedError])
def test_a_map_that_cannot_be_called_or_is_wrong_is_not_packed(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> Tensor:
        raise error

    monkeypatch.setattr(linear, "_packed", broken)
    assert not can_pack.__wrapped__(torch.float32)
    monkeypatch.setattr(linear, "_packed", lambda x, weight: torch.zeros(3, 32))
    assert not can_pack.__wrapped__(torch.float32)
