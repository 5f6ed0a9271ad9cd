"""Every kind of heads under every strategy has the gradients of a single, naive process."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
import torch
from parity import STRATEGIES, ParityCell, reference, run_cells, worst_error
from tiny import VARIANTS

from mtp_lightning.errors import InputError
from mtp_lightning.model.config import INDEPENDENT, BackboneConfig, HeadsConfig
from mtp_lightning.model.training.freezing import Freeze, check_freeze
from mtp_lightning.model.training.recompute import HEADS, Recompute
from mtp_lightning.objective.heads import check_options
from mtp_lightning.objective.loss import LossOptions
from mtp_lightning.objective.teacher_config import TARGETS, Target

TOLERANCE = 3e-5
"""Relative, in float32."""
EVERYTHING = [
    ParityCell(strategy, heads, accumulate, tied)
    for strategy, heads, accumulate, tied in product(STRATEGIES, VARIANTS.values(), (1, 2), (False, True))
]
PARALLEL = HeadsConfig(n_future=3)
SOME = [name if name in ("ddp", "fsdp2") else pytest.param(name, marks=pytest.mark.slow) for name in STRATEGIES]
"""DeepSpeed's three are the slowest; test_strategies.py has two of them in its quick tests."""


def failures(cells: Sequence[ParityCell]) -> list[str]:
    """What is wrong, a line a cell: gradients, or the norm that was logged."""
    found = []
    for cell, result in zip(cells, run_cells(cells), strict=True):
        if isinstance(result, str):
            found.append(f"{cell}: {result}")
            continue
        gradients, norm = result
        expected = reference(cell)
        error = worst_error(gradients, expected)
        expected_norm = torch.nn.utils.get_total_norm(list(expected.values())).item()
        if not error <= TOLERANCE:
            found.append(f"{cell}: gradients off by {error:.1e}")
        elif norm != pytest.approx(expected_norm, rel=TOLERANCE):
            found.append(f"{cell}: logged gradient norm {norm}, and it is {expected_norm}")
    return found


@pytest.mark.parametrize("strategy", SOME)
def test_a_slice_of_every_axis(strategy: str) -> None:
    """Each strategy: all of accumulation x tying, every fifth variant (all of them, over the strategies),
    layers recomputed, with documents that do not see each other, heads that are taught, and registers."""
    corner = [cell for cell in EVERYTHING if cell.strategy == strategy and cell.heads == PARALLEL]
    corner[-1] = replace(corner[-1], recompute="layers_and_heads")
    variants = list(VARIANTS.values())[list(STRATEGIES).index(strategy) :: len(STRATEGIES)]
    rest = [ParityCell(strategy, heads, accumulate=2, tied=i % 2 == 0) for i, heads in enumerate(variants)]
    sequential = HeadsConfig(n_future=3, kind="sequential")
    later = ParityCell(strategy, sequential, later=True, recompute="layers", apart=True)
    taught = ParityCell(strategy, PARALLEL, accumulate=2, target="lk_lambda")
    kept = ParityCell(strategy, VARIANTS["registers"], accumulate=2, recompute="attention", apart=True, later=True)
    assert "\n".join(failures([*corner, *rest, later, taught, kept])) == ""


ADDED = HeadsConfig(n_future=3, match="none")


@pytest.mark.parametrize("strategy", SOME)
def test_begun_with_weights_and_frozen(strategy: str, tmp_path: Path) -> None:
    """Each strategy: heads added to a model that stays; a trunk that stays below what trains; all of it trained."""
    matched = ParityCell(strategy, HeadsConfig(n_future=3, kind="sequential"), accumulate=2, freeze="trunk")
    begun = ParityCell(strategy, ADDED, freeze="next_token").write_source(tmp_path / "untied.safetensors")
    tied = ParityCell(strategy, ADDED, accumulate=2, tied=True).write_source(tmp_path / "tied.safetensors")
    assert "\n".join(failures([matched, begun, tied])) == ""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_kind_of_heads_recomputed(strategy: str) -> None:
    recomputes: list[Recompute] = ["layers", "attention", {"every": 2}]
    cells = [
        ParityCell(strategy, heads, accumulate, recompute=recompute, apart=accumulate == 2)
        for heads, (accumulate, recompute) in product(VARIANTS.values(), product((1, 2), recomputes))
    ]
    assert "\n".join(failures(cells)) == ""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_heads_that_are_run_again_one_at_a_time(strategy: str) -> None:
    """Of the kinds whose heads are independent; a trunk that is frozen, and head 1 with it."""
    heads = [heads for heads in VARIANTS.values() if heads.kind in INDEPENDENT]
    cells = [
        ParityCell(strategy, each, accumulate, tied=accumulate == 1, recompute=recompute, apart=accumulate == 2)
        for each, accumulate, recompute in product(heads, (1, 2), HEADS)
    ]
    frozen = [ParityCell(strategy, PARALLEL, 2, freeze=freeze, recompute="heads") for freeze in get_args(Freeze)]
    later = ParityCell(strategy, PARALLEL, later=True, recompute="heads")
    assert "\n".join(failures([*cells, *frozen, later])) == ""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_kind_of_heads_taught(strategy: str) -> None:
    """Every target; a frozen teacher too."""
    cells = [
        ParityCell(strategy, heads, accumulate, tied=accumulate == 1, target=target)
        for heads, accumulate, target in product(VARIANTS.values(), (1, 2), TARGETS[1:])
        if can_teach(target, heads)
    ]
    frozen = [ParityCell(strategy, PARALLEL, 2, freeze="next_token", target=target) for target in TARGETS[1:]]
    foreseen = [
        ParityCell(strategy, VARIANTS[kind], k, k == 1, target="teacher_kl", latent=0.5)
        for kind, k in product(("recurrent", "next_latent", "fetch"), (1, 2))
    ]
    assert "\n".join(failures([*cells, *frozen, *foreseen])) == ""


def can_teach(target: Target, heads: HeadsConfig) -> bool:
    try:
        check_options(LossOptions(target=target), heads)
    except InputError:
        return False
    return heads.n_future > 1


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_everything_that_can_be_frozen(strategy: str) -> None:
    cells = [
        ParityCell(strategy, heads, accumulate, tied, freeze=freeze)
        for heads, (accumulate, tied), freeze in product(
            VARIANTS.values(), ((1, True), (2, False)), ("trunk", "trunk_and_unembedding", "next_token")
        )
        if can_freeze(freeze, heads, tied)
    ]
    assert "\n".join(failures(cells)) == ""


def can_freeze(freeze: Freeze, heads: HeadsConfig, tied: bool) -> bool:
    try:
        check_freeze(freeze, BackboneConfig(tie_embeddings=tied), heads)
    except InputError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_whole_matrix(strategy: str) -> None:
    assert "\n".join(failures([cell for cell in EVERYTHING if cell.strategy == strategy])) == ""


def test_the_papers_loop_is_right_in_one_process() -> None:
    cell = ParityCell("none", PARALLEL, wrong=True)
    module = cell.module()
    module.training_step(cell.batches()[0], 0).backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert worst_error(gradients, reference(cell)) <= TOLERANCE


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("zero2", marks=pytest.mark.slow)])
def test_the_papers_loop_is_seen_to_be_wrong_in_two(strategy: str) -> None:
    (failure,) = failures([ParityCell(strategy, PARALLEL, wrong=True)])
    assert "gradients off by" in failure or "already been reduced" in failure


def test_dividing_twice_under_accumulation_is_seen_to_be_wrong() -> None:
    (failure,) = failures([ParityCell("zero2 uncorrected", PARALLEL, accumulate=2)])
    assert "gradients off by 5.0e-01" in failure
