"""Windows that a user's function makes: the same for every n and number of processes, checked, continued."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mtp_lightning.data import GeneratedDataModule
from mtp_lightning.errors import InputError


class Counting(GeneratedDataModule):
    def window(self, rng: np.random.Generator) -> np.ndarray:
        start, step = rng.integers(1, self.vocab_size, 2)
        return (start + step * np.arange(self.length)) % self.vocab_size


def made(rank: int = 0, world: int = 1, **settings: int) -> Counting:
    module = Counting(**{"context": 8, "batch_size": 6, "val_windows": 9} | settings)
    state = SimpleNamespace(fn="fit")
    module.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=rank, world_size=world, max_steps=3, accumulate_grad_batches=1, state=state
    )
    module.setup("fit")
    return module


def test_inputs_are_the_same_however_far_the_heads_look() -> None:
    near, far = (list(made(horizon=horizon).train_dataloader()) for horizon in (1, 4))
    assert len(near) == 3
    assert all(torch.equal(a["tokens"], b["tokens"][:, :9]) for a, b in zip(near, far))
    assert far[0]["tokens"].shape == (6, 12)
    rows = {tuple(row) for batch in near for row in batch["tokens"].tolist()}
    assert len(rows) == 18, "no window twice"
    validation = {tuple(row) for batch in made().val_dataloader() for row in batch["tokens"].tolist()}
    assert len(validation) == 9
    assert not rows & validation
    assert not torch.equal(near[0]["tokens"], next(iter(made(seed=1).train_dataloader()))["tokens"])
    assert torch.equal(*(next(iter(made(seed=seed).val_dataloader()))["tokens"] for seed in (0, 1)))


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_windows(world: int) -> None:
    for loader in ("train_dataloader", "val_dataloader"):
        whole = [row for batch in getattr(made(), loader)() for row in batch["tokens"].tolist()]
        parts = [list(getattr(made(rank, world), loader)()) for rank in range(world)]
        seen = [
            row
            for part in parts
            for batch in part
            for row, counts in zip(batch["tokens"].tolist(), batch.get("loss_mask", batch["tokens"] >= 0)[:, 0])
            if counts
        ]
        assert sorted(seen) == sorted(whole)


@pytest.mark.parametrize(
    ("window", "says"),
    [
        (np.arange(4), r"Counting.window gave 4 tokens .*context \+ horizon = 9"),
        (np.arange(9) + 250, "from 250 to 258: .*vocab_size = 256"),
        (np.zeros((2, 9), dtype=int), r"gave \(2, 9\) tokens"),
        (np.zeros(0, dtype=int), "gave 0 tokens of int64: it has to give"),
        (np.arange(9) + 0.5, "gave 9 tokens of float64 from 0.5 to 8.5: it has to give .* = 9 whole numbers"),
        (np.arange(9) > 4, "gave 9 tokens of bool: "),
    ],
)
def test_what_is_no_window_is_refused_before_training(
    window: np.ndarray, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Counting, "window", lambda self, rng: window)
    with pytest.raises(InputError, match=says):
        made()


def test_a_run_goes_on_with_the_same_data_only() -> None:
    state = made().state_dict()
    made().load_state_dict(state)
    with pytest.raises(InputError, match=r"trained with data\.seed = 0"):
        made(seed=1).load_state_dict(state)
