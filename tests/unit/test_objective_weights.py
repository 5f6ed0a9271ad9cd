"""Head weights: each published schedule by hand, and what is refused."""

from typing import Any

import pytest

from mtp_lightning.errors import InputError
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.objective.weights import WeightsConfig, head_weights


def at(progress: float, heads: HeadsConfig, **weights: Any) -> list[float]:
    return pytest.approx(list(head_weights(WeightsConfig(**weights), heads, progress)))  # type: ignore[return-value]


THREE = HeadsConfig(n_future=3)


def test_every_kind_has_its_papers_weights() -> None:
    assert at(0.5, HeadsConfig(n_future=4)) == [1, 1, 1, 1]
    assert at(0.5, HeadsConfig(n_future=4, kind="sequential")) == [1, 0.1, 0.1, 0.1]
    assert at(0.5, HeadsConfig(n_future=4, kind="recurrent")) == [1, 0.36 / 0.7056, 0.216 / 0.7056, 0.1296 / 0.7056]
    for kind in ("next_latent", "fetch"):
        assert at(0.5, HeadsConfig(n_future=5, kind=kind)) == [1, 0.25, 0.25, 0.25, 0.25]
    assert at(0.5, HeadsConfig(n_future=8, kind="order")) == [1, 1]
    assert at(0.0, HeadsConfig(n_future=1, kind="sequential")) == [1]


def test_fast_mtps_weights_as_published() -> None:
    """beta 0.6 over three drafts: .51 / .31 / .18 (arXiv 2509.18362)."""
    weights = head_weights(WeightsConfig(), HeadsConfig(n_future=4, kind="recurrent"), 0.0)
    assert [round(w, 2) for w in weights[1:]] == [0.51, 0.31, 0.18]


def test_modded_nanogpts_annealing_as_published() -> None:
    """[1, .5, .25 -> 0], [1, .5 -> 0], [1] over three equal phases."""
    none = HeadsConfig(n_future=3, kind="none")
    assert at(0.0, none) == [1, 0.5, 0.25]
    assert at(1 / 6, none) == [1, 0.5, 0.125]
    assert at(1 / 3, none) == [1, 0.5, 0]
    assert at(1 / 2, none) == [1, 0.25, 0]
    assert at(2 / 3, none) == [1, 0, 0]
    assert at(1.0, none) == [1, 0, 0]


def test_curricula_over_the_number_of_heads() -> None:
    assert [list(head_weights(WeightsConfig(schedule="forward"), THREE, p)) for p in (0.0, 0.4, 0.7, 1.0)] == [
        [1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1],
    ]  # fmt: skip
    assert [list(head_weights(WeightsConfig(schedule="reverse"), THREE, p)) for p in (0.0, 0.4, 0.7, 1.0)] == [
        [1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 0, 0],
    ]  # fmt: skip


def test_geometric_and_listed_weights() -> None:
    assert at(0.0, THREE, ratio=0.5) == [1, 0.5, 0.25]
    assert at(0.0, THREE, ratio=0.5, lam=0.6) == [1, 0.4, 0.2]
    assert at(0.0, THREE, values=(1.0, 0.3, 0.1)) == [1, 0.3, 0.1]
    assert at(0.5, THREE, values=(1.0, 0.3, 0.1), schedule="reverse") == [1, 0.3, 0]


def test_deepseeks_steps_of_lambda() -> None:
    """0.3 for the first 10 of 14.8 T tokens, then 0.1 (DeepSeek-V3, section 4.2)."""
    steps = {0.0: 0.3, 10 / 14.8: 0.1}
    assert at(0.6, THREE, lam=steps) == [1, 0.15, 0.15]
    assert at(0.7, THREE, lam=steps) == [1, 0.05, 0.05]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"values": (1.0, -1.0)}, "each item a finite number, at least 0"),
        ({"values": (0.0, 0.0)}, "cannot be all zero"),
        ({"values": ()}, r"values is \[\]"),
        ({"values": (1.0, 1.0), "ratio": 0.5}, r"values and \.ratio both say the weights"),
        ({"values": (1.0, 1.0), "lam": 0.5}, r"values and \.lam both say the weights"),
        ({"ratio": 0.0}, r"ratio is 0\.0"),
        ({"lam": -0.1}, "lam is -0.1"),
        ({"lam": {0.5: 1.0}}, "steps begin at progress 0"),
        ({"lam": {0.0: 1.0, 1.0: 0.5}}, "below 1"),
        ({"lam": {0.0: 1.0, 0.5: -0.5}}, "each value a finite number, at least 0"),
    ],
)
def test_weights_that_cannot_be_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        WeightsConfig(**settings)


def test_a_list_of_the_wrong_length_is_refused_with_the_losses_named() -> None:
    with pytest.raises(InputError, match=r"has 3 weights, .* has 2 losses: head_1, order"):
        head_weights(WeightsConfig(values=(1.0, 1.0, 1.0)), HeadsConfig(n_future=3, kind="order"), 0.0)
