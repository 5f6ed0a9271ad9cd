"""Identity: what changes a cell's signature and what must not."""

import copy
import math
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtp_lightning.config.config_files import CONF_DIR
from mtp_lightning.config.one_config import resolve_config
from mtp_lightning.grid.spec.signature import LATER, canonical, signature
from mtp_lightning.model.config import BackboneConfig, HeadsConfig
from mtp_lightning.model.training.recompute import HEADS
from mtp_lightning.tracking.params import NON_SEMANTIC, non_semantic

KEYS = st.text("abcdefgh_", min_size=1, max_size=5)
LEAVES = st.none() | st.booleans() | st.integers(-100, 100) | st.floats(allow_nan=False) | st.text(max_size=5)
TREES = st.dictionaries(
    KEYS,
    st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)),
    min_size=1,
    max_size=4,
)


def reversed_keys(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: reversed_keys(node[key]) for key in reversed(list(node))}
    return [reversed_keys(item) for item in node] if isinstance(node, list) else node


def leaves(node: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all leaves; empty containers count as leaves."""
    items = list(node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ())
    return [path for key, item in items for path in leaves(item, (*at, key))] if items else [at]


def replaced(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    tree = copy.deepcopy(tree)
    node = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return tree


@pytest.mark.parametrize(
    ("data", "more", "name"),
    [
        ("python_stdlib", {}, "bfb9489e02f4"),
        ("star_graph", {}, "fe3f5fd5b21f"),
        ("python_stdlib", {"model.heads.kind": "sequential", "model.heads.n_future": 3}, "de330c6702a1"),
        ("pairs", {"data.source.path": "pairs.jsonl"}, "4706be19cee4"),
        ("mixture", {}, "bb9fabf971e1"),
    ],
)
def test_cells_of_earlier_versions_keep_their_names(data: str, more: dict[str, Any], name: str) -> None:
    """A key that is new belongs into `LATER`, or every finished cell would be run again. (A change of `conf/` or of
    `SCHEMA` on purpose changes these.)"""
    files = [CONF_DIR / file for file in ("base.yaml", "model/tiny.yaml", f"data/{data}.yaml")]
    assert signature(resolve_config(files, {"trainer.precision": "32-true"} | more)) == name


@given(TREES)
def test_the_order_of_keys_does_not_matter(tree: dict[str, Any]) -> None:
    assert signature(reversed_keys(tree)) == signature(tree)


@given(TREES, st.data(), LEAVES)
def test_every_semantic_leaf_matters(tree: dict[str, Any], data: st.DataObject, value: Any) -> None:
    path = data.draw(st.sampled_from(leaves(tree)))
    other = replaced(tree, path, value)
    assert (signature(other) == signature(tree)) == (canonical(other) == canonical(tree))


@given(TREES, st.sampled_from([pattern for pattern, _ in NON_SEMANTIC]), LEAVES | TREES)
def test_no_declared_key_matters(tree: dict[str, Any], pattern: str, value: Any) -> None:
    *parents, last = pattern.replace("*", "anything").split(".")
    with_key = copy.deepcopy(tree)
    node = with_key
    for parent in parents:
        node = node.setdefault(parent, {})
    without = copy.deepcopy(with_key)
    node[last] = value
    assert signature(with_key) == signature(without)


@given(st.integers(-(2**53), 2**53))
def test_whole_floats_are_the_integers_they_equal(number: int) -> None:
    assert canonical(float(number)) == canonical(number)


def test_what_is_told_apart() -> None:
    values = [1, True, "1", None, 1.5, [1], {"a": 1}, {"a": None}, {}, math.inf]
    assert len({signature({"key": value}) for value in values} | {signature({})}) == len(values) + 1


def test_a_signature_is_pinned() -> None:
    # Should this change, every finished run of every user counts as missing: raise SCHEMA knowingly.
    assert signature({"model": {"n": 2, "w": 0.5}, "seed_everything": 1}) == "10d20927f787"
    assert signature({"model": {"n": 2, "w": 0.5}, "seed_everything": 1}, without_seed=True) == "23d0834deebb"


def test_the_group_leaves_out_the_seed_only() -> None:
    a, b = {"seed_everything": 1, "x": 1}, {"seed_everything": 2, "x": 1}
    assert signature(a) != signature(b)
    assert signature(a, without_seed=True) == signature(b, without_seed=True)
    assert signature(a, without_seed=True) != signature({**a, "x": 2}, without_seed=True)


def test_callbacks_that_observe_are_left_out_and_probes_are_not() -> None:
    def with_callbacks(callbacks: object) -> str:
        return signature({"trainer": {"callbacks": callbacks}})

    bar = {"class_path": "lightning.pytorch.callbacks.RichProgressBar"}
    probe = {"class_path": "callbacks.induction.InductionProbe", "init_args": {"every": 10}}
    assert with_callbacks(None) == with_callbacks([]) == with_callbacks([bar])
    assert with_callbacks([probe]) == with_callbacks([bar, probe])
    assert with_callbacks([probe]) != with_callbacks(None)
    assert with_callbacks([probe]) != with_callbacks([{**probe, "init_args": {"every": 20}}])


def test_recomputing_heads_matters_in_16_bits_alone() -> None:
    for precisions, different in ((("bf16-true", "16-mixed", "bf16-mixed", 16), 2), (("32-true", "64-true", None), 1)):
        for precision in precisions:
            values = ["none", "layers", {"every": 2}, "attention", *HEADS]
            configs = [{"model": {"recompute": value}, "trainer": {"precision": precision}} for value in values]
            assert len({signature(config) for config in configs}) == different


def test_the_reason_is_told_for_keys_and_what_is_under_them() -> None:
    assert non_semantic("trainer.logger.init_args.name") == "where numbers are recorded"
    assert non_semantic("trainer.enable_progress_bar")
    assert non_semantic("trainer") is None
    assert non_semantic("trainer.max_steps") is None
    assert non_semantic("model.config") is None


def test_what_yaml_cannot_hold_is_refused_with_its_place() -> None:
    with pytest.raises(TypeError, match=r"at config.a\[1\].b"):
        signature({"a": [0, {"b": object()}]})


def test_one_batch_is_not_all_of_them() -> None:
    def of(value: object) -> str:
        return signature({"trainer": {"limit_val_batches": value, "max_steps": 10}})

    assert of(1) != of(1.0)
    assert of(2) == of(2.0)
    assert signature({"a": {"rate": 1}}) == signature({"a": {"rate": 1.0}})


def test_a_key_that_callbacks_did_not_have_leaves_cells_their_names() -> None:
    def of(**settings: Any) -> str:
        callback = {"class_path": "callbacks.evaluation.EvaluationProbe", "init_args": {"task": "rouge", **settings}}
        return signature({"trainer": {"callbacks": [callback]}})

    assert of() == of(name=None) != of(name="maths")


def test_what_is_left_out_of_a_signature_is_the_default() -> None:
    for part, defaults in (("backbone", asdict(BackboneConfig())), ("heads", asdict(HeadsConfig()))):
        later = {key.rpartition(".")[2]: value for key, value in LATER if key.startswith(f"model.{part}.")}
        assert later
        assert later == {key: defaults[key] for key in later}
