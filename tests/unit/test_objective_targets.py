"""Targets against a brute-force loop under random document borders and masks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.objective.targets import make_targets


@given(
    n=st.integers(1, 6),
    T=st.integers(1, 9),
    borders=st.lists(st.booleans(), min_size=16, max_size=16),
    mask=st.lists(st.booleans(), min_size=16, max_size=16),
    use_mask=st.booleans(),
)
def test_against_a_loop(n: int, T: int, borders: list[bool], mask: list[bool], use_mask: bool) -> None:
    L = T + n
    window = torch.stack([torch.arange(L), 100 + torch.arange(L)])
    documents = torch.tensor([borders[:L], borders[1 : L + 1]]).cumsum(1).int()
    loss_mask = torch.tensor([mask[:L], mask[1 : L + 1]]) if use_mask else None
    out = make_targets(HeadsConfig(n), window, documents, loss_mask)
    assert out.inputs.tolist() == window[:, :T].tolist()
    for b in range(2):
        for t in range(T):
            for i in range(1, n + 1):
                assert out.targets[i - 1, b, t] == window[b, t + i]
                crossed = any(documents[b, s] != documents[b, s + 1] for s in range(t, t + i))
                masked = loss_mask is not None and not loss_mask[b, t + i]
                assert out.valid[i - 1, b, t] == (not crossed and not masked)


def test_the_example_of_the_docstring() -> None:
    out = make_targets(HeadsConfig(2), torch.tensor([[1, 2, 3, 11, 12]]), torch.tensor([[0, 0, 0, 1, 1]]))
    assert out.targets.tolist() == [[[2, 3, 11]], [[3, 11, 12]]]
    assert out.valid.tolist() == [[[True, True, False]], [[True, False, False]]]


def test_without_borders_every_target_counts() -> None:
    assert make_targets(HeadsConfig(3), torch.zeros(2, 6, dtype=torch.long)).valid.all()


def test_a_window_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves no input to look 4 tokens ahead"):
        make_targets(HeadsConfig(4), torch.zeros(1, 4, dtype=torch.long))
