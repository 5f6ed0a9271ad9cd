"""Trees of drafts: their shape, what a node may see, what a walk over the candidates accepts; and the text stays."""

from itertools import combinations, product

import pytest
import torch
from compiling import EITHER
from hypothesis import given, settings
from hypothesis import strategies as st
from sampled import one_in
from test_decoding import random_model
from tiny import tiny_backbone
from torch import Tensor

from mtp_lightning.decoding.choosing import Chooser, Sampling
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.generate import Generation, generate
from mtp_lightning.decoding.positions import MAX_NODES, NewPositions, PositionTables, Tree, check_tree
from mtp_lightning.decoding.reference import decode_plainly, head_logits
from mtp_lightning.errors import InputError
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel

HEADS = {
    "parallel": HeadsConfig(n_future=3),
    "markov": HeadsConfig(n_future=3, kind="markov"),
    "mixture": HeadsConfig(n_future=3, kind="mixture", mixture_rank=3),
    "linear": HeadsConfig(n_future=3, kind="linear"),
    "causal": HeadsConfig(n_future=3, kind="causal"),
    "anticausal": HeadsConfig(n_future=3, kind="anticausal"),
    "sequential": HeadsConfig(n_future=3, kind="sequential"),
    "next_latent": HeadsConfig(n_future=3, kind="next_latent"),
    "fetch": HeadsConfig(n_future=3, kind="fetch"),
    "leap": HeadsConfig(n_future=3, offsets=(1, 3, 4)),
}
BRANCHES = st.lists(st.integers(1, 4), max_size=3)


def paths(branches: list[int]) -> list[tuple[int, ...]]:
    """Every node as the choices that lead to it, breadth first."""
    return [path for depth in range(len(branches) + 1) for path in product(*map(range, branches[:depth]))]


@given(BRANCHES)
def test_a_tree_is_its_paths_in_order(branches: list[int]) -> None:
    tree, nodes = Tree(tuple(branches)), paths(branches)
    assert tree.size == len(nodes)
    assert tree.depth == len(branches) + 1
    assert tree.depths == [len(path) for path in nodes]
    assert tree.parents == [nodes.index(path[:-1]) for path in nodes]
    assert [[nodes[i] for i in level] for level in tree.levels] == [
        [path for path in nodes if len(path) == depth] for depth in range(tree.depth)
    ]
    assert tree.visible().tolist() == [[path[: len(other)] == other for other in nodes] for path in nodes]
    assert tree.is_chain == (len(nodes) == len(branches) + 1)


@pytest.mark.parametrize(
    ("branches", "heads_used", "says"),
    [
        ([2, 0], 3, r"tree is \[2, 0\]: every draft needs at least one candidate"),
        ([-1], 3, r"tree is \[-1\]: every draft needs"),
        ([2, 2, 2], 3, "3 heads draft 2 tokens, and no more"),
        ([2], 1, "1 heads draft 0 tokens"),
        ([8, 7], 3, "65 nodes, and 64 are the most"),
    ],
)
def test_trees_that_cannot_be_are_refused(branches: list[int], heads_used: int, says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_tree(branches, heads_used)


def test_the_largest_tree_is_not_refused() -> None:
    assert check_tree([7, 8], 3).size == MAX_NODES


def test_trees_that_do_not_go_with_what_is_asked_are_refused() -> None:
    engine, prompts = Engine(random_model(HEADS["leap"], seed=0)), [torch.arange(3)]
    assert generate(engine, prompts, 4, tree=[2, 1, 2]), "its three heads look four tokens ahead"
    with pytest.raises(InputError, match="a fixed number of heads"):
        generate(engine, prompts, 4, "auto", tree=[2])
    with pytest.raises(InputError, match="acceptance by match"):
        generate(engine, prompts, 4, sampling=Sampling(1.0, accept="ratio"), tree=[2])
    with pytest.raises(InputError, match="3 heads draft 2 tokens"):
        generate(engine, prompts, 4, 2, tree=[2, 1, 2])


def candidates(model: MTPModel, text: list[int], branches: list[int]) -> list[list[int]]:
    """The certain token after `text`, then the likeliest at each offset; heads that read on read the first of each."""
    offsets = model.heads_config.head_offsets
    levels = [[int(head_logits(model, text, text)[0, -1].argmax())]]
    for offset, branch in enumerate(branches, start=2):
        known = [*text, *(level[0] for level in levels)]
        head = next(i for i, looks in enumerate(offsets) if looks >= offset)
        position = max(len(text) - 1 - (offsets[head] - offset), 0)
        levels.append(head_logits(model, text, known)[head, position].topk(branch).indices.tolist())
    return levels


def walk(model: MTPModel, prompt: Tensor, output: list[int], branches: list[int]) -> list[tuple[list[int], list[int]]]:
    """(accepted tokens, nodes) of every forward that verifies trees takes for `output`."""
    text, steps, done = prompt.tolist(), [], 0
    while done < len(output) - 1:
        levels = candidates(model, text, branches)
        size = 1
        while size < min(len(levels), len(output) - done) and output[done + size] in levels[size]:
            size += 1
        steps.append(
            (output[done : done + size], [levels[len(path)][path[-1] if path else 0] for path in paths(branches)])
        )
        text += output[done : done + size]
        done += size
    return steps


def steps_of(generation: Generation) -> list[tuple[list[int], list[int]]]:
    return [(step.tokens, step.block) for step in generation.steps]


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("name", one_in(2, HEADS))
def test_every_tree_holds_the_likeliest_and_a_walk_down_it_is_what_is_accepted(name: str) -> None:
    model = random_model(HEADS[name], seed=4, n_kv_heads=1, vocab_size=8)
    engine = Engine(model, exact_drafts=True)
    prompts = [torch.randint(0, 8, (length,)) for length in (1, 4, 9)]
    expected = [decode_plainly(model, prompt, 12) for prompt in prompts]
    sizes = set()
    for tree in ([3], [2, 3], [1, 4]):
        together = generate(engine, prompts, 12, tree=tree)
        for prompt, tokens, out in zip(prompts, expected, together):
            assert out.tokens == tokens
            assert steps_of(out) == walk(model, prompt, tokens, tree)
            sizes |= {len(step.tokens) for step in out.steps}
    assert sizes == {1, 2, 3}, "every depth was a last one"
    (alone,) = generate(engine, prompts[1:2], 12, tree=tree)
    assert steps_of(alone) == steps_of(together[1])


@pytest.mark.parametrize("compiled", EITHER)
@pytest.mark.usefixtures("shapes_unchecked")
@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(sorted(HEADS)),
    seed=st.integers(0, 10_000),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    tree=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    new=st.integers(1, 12),
    stops=st.sets(st.integers(0, 5), max_size=2),
)
def test_any_batch_with_any_tree_continues_as_the_definition_says(
    compiled: bool, name: str, seed: int, lengths: list[int], tree: list[int], new: int, stops: set[int]
) -> None:
    model = random_model(HEADS[name], seed, vocab_size=6)
    prompts = [torch.randint(0, 6, (length,)) for length in lengths]
    outs = generate(Engine(model, compiled=compiled), prompts, new, stop_ids=stops, tree=tree)
    assert [out.tokens for out in outs] == [decode_plainly(model, prompt, new, stops) for prompt in prompts]


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_text_ends_at_the_first_of_several_stop_tokens_in_a_block(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(HeadsConfig(n_future=4), seed=3, vocab_size=6)
    prompt = torch.tensor([0, 1])
    text = prompt.tolist() + decode_plainly(model, prompt, 30)

    def foresee(self: Chooser, logits_BJV: Tensor, rows: slice, targets: list[int]) -> Tensor:
        return torch.tensor([text[target : target + logits_BJV.shape[1]] for target in targets])

    monkeypatch.setattr(Chooser, "draft", foresee)
    for stops in combinations(range(6), 2):
        (out,) = generate(Engine(model), [prompt], 20, k, stop_ids=stops)
        assert out.tokens == decode_plainly(model, prompt, 20, stops)


@pytest.mark.usefixtures("shapes_unchecked")
def test_a_tree_makes_at_least_as_much_certain_as_the_chain_in_it() -> None:
    for name, heads in HEADS.items():
        engine = Engine(random_model(heads, seed=4, vocab_size=8), exact_drafts=True)
        prompts = [torch.randint(0, 8, (length,)) for length in (2, 3, 5)]
        chain, narrow, wide = (
            sum(len(out.steps) for out in generate(engine, prompts, 16, 3, tree=tree))
            for tree in ([1, 1], [2, 1], [4, 4])
        )
        assert wide <= narrow <= chain, name
        assert wide < chain, name


def check_positions(
    new: NewPositions,
    tables: PositionTables,
    slots: list[list[int]],
    positions: list[list[int]],
    sees: list[list[set[int]]],
) -> None:
    """That the new positions lie, turn and look where they should."""
    B, M = len(slots), len(slots[0])
    if isinstance(new.slots, slice):
        assert [list(range(tables.size))[new.slots]] * B == slots
    else:
        assert new.slots[0].tolist() == [[row] for row in range(B)]
        assert new.slots[1].tolist() == slots
    speeds = 100.0 ** -torch.linspace(0, 1, 5)[:4]
    turns = torch.tensor(positions)[:, :, None, None] * speeds
    torch.testing.assert_close(new.angles.expand(B, -1, -1, -1), torch.polar(torch.ones_like(turns), turns))
    assert new.first == 0
    open_11MS = torch.ones(1, 1, M, new.span, dtype=torch.bool)
    if new.causal:
        assert new.mask is None
        open_11MS = open_11MS.tril()
    if new.mask is not None:
        assert set(new.mask.unique().tolist()) <= {0.0, float("-inf")}
        open_11MS = new.mask == 0
    found = open_11MS.expand(B, 1, M, new.span)[:, 0].tolist()
    assert [[{s for s, is_open in enumerate(row) if is_open} for row in rows] for rows in found] == sees


def make_tables(size: int) -> PositionTables:
    return PositionTables(size, tiny_backbone(head_dim=8, rope_theta=100.0), torch.float32, torch.device("cpu"))


@settings(deadline=None)
@given(branches=BRANCHES, starts=st.lists(st.integers(0, 9), min_size=1, max_size=4), uniform=st.booleans())
def test_nodes_come_after_the_accepted_tokens_and_see_those_and_their_ancestors(
    branches: list[int], starts: list[int], uniform: bool
) -> None:
    starts = [starts[0]] * len(starts) if uniform else starts
    nodes = paths(branches)
    tables = make_tables(max(starts) + len(nodes))
    slots = [[start + i for i in range(len(nodes))] for start in starts]
    positions = [[start + len(path) for path in nodes] for start in starts]
    sees = [
        [{*range(start), *(start + nodes.index(path[:depth]) for depth in range(len(path) + 1))} for path in nodes]
        for start in starts
    ]
    for known in (starts, starts, torch.tensor(starts)):  # the second time from the tables of the first
        check_positions(tables.block(known, Tree(tuple(branches))), tables, slots, positions, sees)


@settings(deadline=None)
@given(ends=st.lists(st.integers(1, 80), min_size=1, max_size=4), share=st.floats(0, 1), uniform=st.booleans())
def test_a_window_is_the_last_accepted_positions_each_seeing_what_is_before_it(
    ends: list[int], share: float, uniform: bool
) -> None:
    ends = [ends[0]] * len(ends) if uniform else ends
    length = max(1, round(share * max(ends)))
    tables = make_tables(max(ends) + 3)
    positions = [[max(end - length + i, 0) for i in range(length)] for end in ends]
    sees = [[set(range(position + 1)) for position in row] for row in positions]
    for known in (ends, torch.tensor(ends)):
        check_positions(tables.window(known, length), tables, positions, positions, sees)


@settings(deadline=None)
@given(ends=st.lists(st.integers(1, 30), min_size=1, max_size=4), length=st.integers(1, 4), reach=st.integers(4, 40))
def test_a_shorter_reach_forgets_what_is_far_before_the_end_of_the_shortest_row(
    ends: list[int], length: int, reach: int
) -> None:
    new = make_tables(40).window(ends, min(length, max(ends)))
    near = new.reaching(ends, reach)
    assert near.first == max(min(ends) - reach, 0)
    assert (near.span, near.slots) == (new.span, new.slots)
    if new.mask is not None:
        assert near.mask is not None
        assert torch.equal(near.mask, new.mask[..., near.first :])
        assert (near.mask == 0).any(-1).all(), "every position sees some key"
