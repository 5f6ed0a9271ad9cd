"""Configurations as MLflow's parameters."""

from argparse import Namespace
from dataclasses import dataclass
from enum import Enum

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, MAX_PARAM_VAL_LENGTH, _validate_metric_name

from mtp_lightning.errors import InputError
from mtp_lightning.tracking.params import (
    NAME_LIMIT,
    NON_SEMANTIC,
    RECOMPUTE,
    VALUE_LIMIT,
    as_parameters,
    checked_name,
    refuse_changes,
    shorten,
)


class Match(Enum):
    PARAMETERS = "parameters"


@dataclass(frozen=True)
class Heads:
    n_future: int = 4
    match: Match = Match.PARAMETERS


def test_nested_things_get_dotted_names_and_numbers_stay_plain() -> None:
    config = {
        "model": {"heads": Heads(), "optimizer": Namespace(lr=3e-4, betas=[0.9, 0.95])},
        "callbacks": [{"period": 5}, {"period": 6.0}],
        "none": None,
        "flag": True,
        "empty": {},
        "kind": Heads,
        "function": shorten,
    }
    assert as_parameters(config) == {
        "model.heads.n_future": "4",
        "model.heads.match": "parameters",
        "model.optimizer.lr": "0.0003",
        "model.optimizer.betas": "[0.9, 0.95]",
        "callbacks.0.period": "5",
        "callbacks.1.period": "6.0",
        "none": "None",
        "flag": "True",
        "empty": "{}",
        "kind": f"{__name__}.Heads",
        "function": "mtp_lightning.tracking.params.shorten",
    }


def test_a_value_that_prints_its_address_is_the_same_text_in_every_process() -> None:
    class Thing:
        pass

    assert as_parameters({"a": Thing()}) == as_parameters({"a": Thing()})


def test_a_long_value_is_cut_with_a_note_and_a_change_after_the_cut_shows() -> None:
    one, other = "x" * 10_000 + "a", "x" * 10_000 + "b"
    assert len(shorten(one)) == VALUE_LIMIT
    assert "[cut: 10001 characters, sha256 " in shorten(one)
    assert shorten(one) != shorten(other)
    assert shorten("x" * VALUE_LIMIT) == "x" * VALUE_LIMIT


def test_limits_are_those_of_mlflow() -> None:
    assert (NAME_LIMIT, VALUE_LIMIT) == (MAX_ENTITY_KEY_LENGTH, MAX_PARAM_VAL_LENGTH)


@pytest.mark.parametrize("name", ["pass@1", "", "a//b", "../a", "/a", "a/", ".", "a/../b", "y" * 251])
def test_names_mlflow_does_not_take_are_refused_with_their_name(name: str) -> None:
    with pytest.raises(ValueError, match="metric '"):
        checked_name("metric", name)


@given(st.text(alphabet="ab@1_-. :/é\n", min_size=1, max_size=8))
def test_a_name_is_taken_only_if_mlflow_takes_it(name: str) -> None:
    try:
        checked_name("metric", name)
    except ValueError:
        return
    _validate_metric_name(name)


@pytest.mark.parametrize("pattern", [pattern for pattern, _ in NON_SEMANTIC])
def test_a_run_goes_on_under_other_values_of_what_cannot_change_its_result(pattern: str) -> None:
    """Such a cell keeps its signature, so it has to go on in its folder."""
    key, fixed = pattern.replace("*", "anything"), {"trainer.precision": "32-true", "model.heads.n_future": "4"}
    for below in ("", ".below"):
        refuse_changes({**fixed, key + below: "new"}, {**fixed, key + below: "old"}, None)
    with pytest.raises(InputError, match=r"model\.heads\.n_future is 4, .* begun with 2"):
        refuse_changes({**fixed, key: "new"}, {**fixed, key: "old", "model.heads.n_future": "2"}, None)


@pytest.mark.parametrize(
    ("precision", "before", "now", "refused"),
    [
        ("bf16-mixed", "none", "layers", False),
        ("bf16-mixed", "heads", "layers_and_heads", False),
        ("bf16-mixed", "none", "heads", True),
        ("bf16-mixed", "layers_and_heads", "none", True),
        ("32-true", "none", "heads", False),
    ],
)
def test_a_run_of_16_bits_does_not_begin_to_recompute_its_heads(
    precision: str, before: str, now: str, refused: bool
) -> None:
    params = {"trainer.precision": precision, RECOMPUTE: now}
    if not refused:
        refuse_changes(params, params | {RECOMPUTE: before}, None)
        return
    with pytest.raises(InputError, match=rf"model\.recompute is {now}, .* begun with {before}"):
        refuse_changes(params, params | {RECOMPUTE: before}, None)
