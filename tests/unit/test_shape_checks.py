"""Signatures are checked while tests run, in each process of several: without this, they would be comments."""

import numpy as np
import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation, BeartypeCallHintReturnViolation
from jaxtyping import TypeCheckError
from shape_checks import checked
from tiny import tiny_backbone
from torch import Tensor

from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.objective.targets import make_targets
from mtp_lightning.optimization.schedule import cosine_decay
from mtp_lightning.shapes import Int

WINDOW = torch.zeros(2, 3, dtype=torch.int64)


def test_a_shape_and_shapes_that_must_be_equal() -> None:
    make_targets(HeadsConfig(1), WINDOW, WINDOW)
    for wrong in ((WINDOW[None],), (WINDOW.float(),), (WINDOW, WINDOW[:, :2])):
        with pytest.raises(BeartypeCallHintParamViolation):
            make_targets(HeadsConfig(1), *wrong)


def test_a_signature_without_a_shape() -> None:
    with pytest.raises(BeartypeCallHintParamViolation):
        cosine_decay("half")


def vector(x: Int[Tensor, "N"], size: int) -> Int[Tensor, "N"]:
    return x[:size]


def zeros(length: int, made: int) -> Int[np.ndarray, "{length}"]:
    return np.zeros(made, dtype=np.int64)


def parts(x: Int[Tensor, "N"]) -> Int[Tensor, "N"]:
    checked(vector)(x[1:], 10)
    return x


def elsewhere(x: "NotImported", n: "int") -> int:
    return n


def test_what_is_returned() -> None:
    assert len(checked(vector)(torch.arange(3), 3)) == 3
    with pytest.raises(BeartypeCallHintReturnViolation):
        checked(vector)(torch.arange(3), 2)


def test_a_shape_that_an_argument_names() -> None:
    assert len(checked(zeros)(3, 3)) == 3
    with pytest.raises(TypeCheckError):
        checked(zeros)(3, 2)


def test_the_models_states(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MTPModel(tiny_backbone(), HeadsConfig(1))
    assert model(WINDOW).ndim == 4
    assert model(WINDOW, score=lambda i, h: (i, h.shape)) == [(0, (1, 2, 3, 32))]
    monkeypatch.setattr(model.heads, "forward", lambda z_BTD, *_, **__: z_BTD)
    with pytest.raises(BeartypeCallHintReturnViolation):
        model(WINDOW)


def test_each_call_has_shapes_of_its_own() -> None:
    assert len(checked(parts)(torch.arange(3))) == 3


def test_strings_are_types() -> None:
    assert checked(elsewhere)("anything", 3) == 3
    assert elsewhere.__annotations__["n"] == "int"
    with pytest.raises(BeartypeCallHintParamViolation):
        checked(elsewhere)("anything", "three")


def test_it_can_be_turned_off(shapes_unchecked: None) -> None:
    assert len(checked(vector)(torch.zeros(2, 2), 1)) == 1
