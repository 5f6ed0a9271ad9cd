import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtp_lightning.data.corpora.documents import Document
from mtp_lightning.data.loader import (
    BatchLoader,
    ResumableLoader,
    TrainingWindows,
    ValidationWindows,
    read_windows,
)
from mtp_lightning.data.tokens.prepare import ShardSettings, prepare_shards
from mtp_lightning.data.tokens.store import TokenStore
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer
from mtp_lightning.data.tokens.windows import (
    HORIZON_RESERVE,
    TrainingOrder,
    ValidationOrder,
    permute,
    prompt_starts,
    tokens_needed,
)
from mtp_lightning.objective.targets import STEP_REST

T = 8


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    directory = tmp_path_factory.mktemp("data") / "shards"
    corpus = [Document(f"{i}", f"document {i} " * (i % 4 + 1)) for i in range(60)]
    prepare_shards(directory, lambda: corpus, ByteTokenizer(), {}, ShardSettings(0.2, shard_tokens=100))
    return TokenStore(directory, "train")


def training(
    store: TokenStore, horizon: int = 2, batch_size: int = 6, rank: int = 0, world: int = 1
) -> TrainingWindows:
    order = TrainingOrder(len(store), T, horizon, seed=0)
    return TrainingWindows(partial(read_windows, store, order), batch_size, rank, world)


def starts(n_tokens: int, horizon: int, seed: int, count: int) -> list[int]:
    return TrainingOrder(n_tokens, T, horizon, seed).starts(np.arange(count)).tolist()


@given(st.integers(1, 3000), st.lists(st.integers(0, 2**64 - 1), min_size=6, max_size=6))
def test_permute_is_a_bijection(n: int, keys: list[int]) -> None:
    assert sorted(permute(np.arange(n), n, keys).tolist()) == list(range(n))


def test_permute_does_not_depend_on_the_batch() -> None:
    keys, n = [1, 2, 3, 4, 5, 6], 10_007
    whole = permute(np.arange(n), n, keys)
    assert [permute(np.array([i]), n, keys).item() for i in range(50)] == whole[:50].tolist()
    assert permute(np.arange(5), 2**40, keys).max() > 2**30


def test_permute_looks_random() -> None:
    """Ranks of neighbours are uncorrelated, and every place is about equally likely for the first index."""
    rng = np.random.default_rng(0)
    n = 1000
    order = permute(np.arange(n), n, rng.integers(0, 2**63, 6).tolist())
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.1
    firsts = [permute(np.array([0]), 8, rng.integers(0, 2**63, 6).tolist()).item() for _ in range(2000)]
    assert np.bincount(firsts, minlength=8).min() > 180


@given(st.integers(T + HORIZON_RESERVE, 2000), st.sampled_from([1, 2, 8, 16, 20]), st.integers(0, 5))
def test_an_epoch_sees_every_window_once(n_tokens: int, horizon: int, seed: int) -> None:
    if n_tokens < tokens_needed(T, horizon):
        return
    order = TrainingOrder(n_tokens, T, horizon, seed)
    n = order.windows_per_epoch
    for epoch in range(3):
        found = np.sort(order.starts(epoch * n + np.arange(n)))
        assert (np.diff(found) == T).all()
        assert 0 <= found[0] < T
        assert found[-1] + T + horizon <= n_tokens
        # Nothing is left out but what a phase or the reserve can be responsible for.
        assert n_tokens - (found[-1] - found[0]) < 3 * T + max(horizon, HORIZON_RESERVE)


def test_starts_are_the_same_for_every_number_of_heads() -> None:
    for horizon in (2, 4, 8, HORIZON_RESERVE):
        assert starts(999, horizon, 3, 500) == starts(999, 1, 3, 500)
        for limit in (None, 7):
            one, many = ValidationOrder(999, T, 1, limit), ValidationOrder(999, T, horizon, limit)
            assert one.n_windows == many.n_windows
            assert (one.starts(np.arange(one.n_windows)) == many.starts(np.arange(one.n_windows))).all()


def test_epochs_and_seeds_differ() -> None:
    order = TrainingOrder(5000, T, 1, seed=0)
    n = order.windows_per_epoch
    epochs = [order.starts(epoch * n + np.arange(n)) for epoch in range(30)]
    assert len({tuple(epoch) for epoch in epochs}) == 30
    assert len({int(epoch.min()) % T for epoch in epochs}) == T
    assert starts(5000, 1, 0, 50) != starts(5000, 1, 1, 50)


def test_the_order_is_pinned() -> None:
    """A change here changes every experiment: it has to be deliberate."""
    assert starts(500, 1, 0, 6) == [232, 360, 200, 144, 384, 152]


def test_validation_windows_are_spread_evenly() -> None:
    everything = ValidationOrder(1000, T, 1, None)
    assert everything.starts(np.arange(everything.n_windows)).tolist() == list(
        range(0, 1000 - T - HORIZON_RESERVE + 1, T)
    )
    some = ValidationOrder(1000, T, 1, 10).starts(np.arange(10))
    assert some[0] == 0
    assert set(np.diff(some)) <= {12 * T, 13 * T}
    assert ValidationOrder(1000, T, 1, 10_000).n_windows == everything.n_windows


@pytest.mark.parametrize(
    ("count", "length", "starts"),
    [(1, 4, [4]), (2, 4, [4, 11]), (4, 4, [4, 4, 10, 11]), (2, 5, [4, 10]), (3, 7, [0, 5, 10]), (2, 6, [10, 10])],
)
def test_prompts_are_spread_over_documents(count: int, length: int, starts: list[int]) -> None:
    """Documents of 3, 5 and 6 tokens, each with its end: a prompt never holds an end, if it can help it."""
    assert prompt_starts(np.array([0, 4, 10]), 17, count, length) == starts


def test_a_batch_is_what_the_store_holds(store: TokenStore) -> None:
    windows = training(store)
    batch = windows[5]
    assert batch["tokens"].shape == batch["documents"].shape == (6, T + 2)
    assert (batch["tokens"].dtype, batch["documents"].dtype) == (torch.int64, torch.int32)
    order = TrainingOrder(len(store), T, 2, seed=0)
    for row, start in enumerate(order.starts(np.arange(30, 36)).tolist()):
        assert batch["tokens"][row].tolist() == store.read(start, T + 2).tolist()
        assert batch["documents"][row].tolist() == store.document_ids(start, T + 2).tolist()


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_a_global_batch(store: TokenStore, world: int) -> None:
    whole = training(store)[7]
    for key, value in whole.items():
        parts = [training(store, rank=rank, world=world)[7][key] for rank in range(world)]
        assert torch.equal(torch.stack(parts, dim=1).flatten(0, 1), value)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("limit", [1, 6, 7, 13])
def test_ranks_share_the_validation_windows(store: TokenStore, world: int, limit: int) -> None:
    order = ValidationOrder(len(store), T, 2, limit)
    read = partial(read_windows, store, order)
    ranks = [ValidationWindows(read, order.n_windows, 6, rank, world) for rank in range(world)]
    expected = [store.read(start, T + 2).tolist() for start in order.starts(np.arange(limit)).tolist()]
    seen = []
    for index in range(len(ranks[0])):
        parts = [rank[index] for rank in ranks]
        assert len({len(part["tokens"]) for part in parts}) == 1
        for part in parts:
            mask = part.get("loss_mask", torch.ones_like(part["tokens"], dtype=torch.bool))
            assert (mask.all(dim=1) == mask.any(dim=1)).all()
            seen += part["tokens"][mask.all(dim=1)].tolist()
        assert world > 1 or "loss_mask" not in parts[0]
    assert sorted(seen) == sorted(expected)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("k", [0, 1, 5, 9])
def test_a_resumed_loader_goes_on_with_the_next_batch(store: TokenStore, num_workers: int, k: int) -> None:
    expected = [batch["tokens"] for batch in BatchLoader(training(store), 9)]
    first = ResumableLoader(training(store), 9, num_workers)
    iterator = iter(first)
    seen = [next(iterator)["tokens"] for _ in range(k)]
    state = first.state_dict()
    assert state == {"n_yielded": k}
    second = ResumableLoader(training(store), 9, num_workers)
    second.load_state_dict(state)
    if k < 9:  # else the pass is over
        seen += [batch["tokens"] for batch in second]
    assert len(seen) == len(expected) == len(second)
    assert all(map(torch.equal, seen, expected))


@pytest.mark.parametrize("k", [0, 3, 6])
def test_the_first_batch_of_a_step_brings_the_others(store: TokenStore, k: int) -> None:
    expected = [batch["tokens"] for batch in BatchLoader(training(store), 9)]
    loader = ResumableLoader(training(store), 9, step_batches=3)
    loader.load_state_dict({"n_yielded": k})
    for i, batch in enumerate(loader, start=k):
        assert torch.equal(batch["tokens"], expected[i])
        assert loader.n_yielded == i + 1, "handed out, not read ahead"
        rest = [other["tokens"] for other in batch.get(STEP_REST, [])]
        assert len(rest) == (0 if i % 3 else 2)
        assert all(map(torch.equal, rest, expected[i + 1 : i + 3]))


def test_the_next_pass_brings_new_batches(store: TokenStore) -> None:
    loader = ResumableLoader(training(store), 4)
    seen = [batch["tokens"] for _ in range(2) for batch in loader]
    expected = [batch["tokens"] for batch in BatchLoader(training(store), 8)]
    assert len(seen) == 8
    assert all(map(torch.equal, seen, expected))


def test_windows_can_be_sent_to_a_worker(store: TokenStore, tmp_path: Path) -> None:
    pickled = pickle.dumps(training(store))
    assert len(pickled) < 2000
    assert torch.equal(pickle.loads(pickled)[3]["tokens"], training(store)[3]["tokens"])
