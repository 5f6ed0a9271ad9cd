"""Every number of a configuration has a range: the classes are walked, and what lies outside is refused by its key."""

import inspect
import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from callbacks.base import ProbeCallback
from callbacks.checkpointing import PeriodicCheckpoint
from callbacks.decoding import DecodingProbe
from callbacks.evaluation import EvaluationProbe
from callbacks.exact_match import ExactMatchProbe
from callbacks.heartbeat import Heartbeat
from callbacks.induction import InductionProbe
from callbacks.infilling import InfillingProbe
from callbacks.long_context import LongContextProbe
from callbacks.throughput import ThroughputMonitor
from mtp_lightning.config.trainer_ranges import RANGES, check_trainer_ranges
from mtp_lightning.data.corpora.source import SourceConfig
from mtp_lightning.data.datamodule import MTPDataModule
from mtp_lightning.data.generated import GeneratedDataModule
from mtp_lightning.data.mixtures.sources import MixtureSource
from mtp_lightning.data.tasks.datamodule import TaskDataModule
from mtp_lightning.data.tasks.polynomial import Polynomial
from mtp_lightning.data.tasks.star_graph import StarGraph
from mtp_lightning.data.tokens.datamodule import TokenDataModule
from mtp_lightning.data.tokens.prepare import ShardSettings
from mtp_lightning.data.transforms.infilling import InfillingConfig
from mtp_lightning.errors import InputError
from mtp_lightning.model.config import BackboneConfig, HeadsConfig
from mtp_lightning.module import MTPModule
from mtp_lightning.objective.teacher_config import TeacherConfig
from mtp_lightning.objective.weights import LossConfig, WeightsConfig
from mtp_lightning.optimization.adamw import OptimizerConfig
from mtp_lightning.optimization.schedule import ScheduleConfig
from mtp_lightning.ranges import Range, check_ranges, check_value, declared
from mtp_lightning.strategies.fsdp2 import FSDP2Strategy
from mtp_lightning.strategies.zero import ZeroStrategy
from mtp_lightning.tracking.logger import MLflowRunLogger

CLASSES: Mapping[type, Callable[..., Any]] = {
    cls: cls
    for cls in (
        BackboneConfig, HeadsConfig, LossConfig, WeightsConfig, OptimizerConfig, SourceConfig, ShardSettings,
        MixtureSource, StarGraph, Polynomial, TokenDataModule, GeneratedDataModule, MTPDataModule, PeriodicCheckpoint,
        DecodingProbe, ExactMatchProbe, InductionProbe, InfillingConfig, InfillingProbe, LongContextProbe,
        ThroughputMonitor, Heartbeat, MLflowRunLogger, FSDP2Strategy, ZeroStrategy, TeacherConfig,
        MTPModule,
    )
} | {
    EvaluationProbe: lambda **given: EvaluationProbe(**{"task": "gsm8k", "data": "x", "samples": 10**6} | given),
    ScheduleConfig: lambda **given: ScheduleConfig(**{"kind": "wsd", "decay_steps": 5} | given),
    TaskDataModule: lambda **given: TaskDataModule(**{"task": StarGraph()} | given),
}  # fmt: skip
"""Each class of a configuration, and how to make one."""
FIELDS = [(cls, name) for cls in CLASSES for name in declared(cls)]
NOT_FINITE = (math.nan, math.inf, -math.inf)
OUTSIDE = (*NOT_FINITE, -1, -(10**12), 10**19, "text", [], {}, True, ("a",), [math.nan])


def hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls if is_dataclass(cls) else cls.__init__, include_extras=True)  # type: ignore[misc]


def bare_numbers(hint: Any) -> Iterator[Any]:
    """int and float in a type that no range belongs to."""
    if hint in (int, float):
        yield hint
    elif get_origin(hint) not in (Annotated, Literal):
        for part in get_args(hint):
            yield from bare_numbers(part)


def bad_value(hint: Any) -> Any:
    """One of the right type and outside the range."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return -(10**19) if args[0] is int else math.nan
    if origin in (Union, types.UnionType):
        return bad_value(next(part for part in args if part is not type(None) and get_origin(part) is not Literal))
    if origin is dict and args[0] is str:
        return {"text": bad_value(args[1])}
    values = [bad_value(part) for part in args if part is not Ellipsis]
    return tuple(values) if origin is tuple else [*values]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_no_number_is_without_a_range(cls: type) -> None:
    assert {name: hint for name, hint in hints(cls).items() if [*bare_numbers(hint)]} == {}


def test_the_classes_are_all_there() -> None:
    """A new callback or data module of ours is walked too."""
    ours = {ProbeCallback, MTPDataModule}
    found = {cls for base in ours for cls in base.__subclasses__() if cls.__module__.startswith(("callbacks.", "mtp_"))}
    assert found <= CLASSES.keys() | {ProbeCallback}


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_a_class_refuses_what_is_outside(cls: type, name: str) -> None:
    """Made with it, so that the constructor is known to look."""
    with pytest.raises(InputError, match=rf"\b{name} is .*: it has to be"):
        CLASSES[cls](**{name: bad_value(hints(cls)[name])})


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_every_kind_of_nonsense_is_refused(cls: type, name: str) -> None:
    for value in OUTSIDE:
        with pytest.raises(InputError, match=rf"^key\.{name} is "):
            check_ranges("key", cls, {name: value})


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_defaults_are_inside(cls: type, name: str) -> None:
    default = inspect.signature(cls).parameters[name].default
    check_ranges("key", cls, {name: default})


TRAINER: dict[str, Any] = {
    "accelerator": "cpu", "devices": 1, "num_nodes": 1, "callbacks": None, "fast_dev_run": False, "barebones": False,
    "max_epochs": 1, "min_epochs": None, "max_steps": 100, "min_steps": None, "max_time": None,
    "limit_train_batches": None, "limit_val_batches": None, "limit_test_batches": None, "limit_predict_batches": None,
    "overfit_batches": 0.0, "val_check_interval": 10, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0,
    "log_every_n_steps": 10, "accumulate_grad_batches": 1, "gradient_clip_val": 1.0,
    "reload_dataloaders_every_n_epochs": 0,
}  # fmt: skip


@pytest.mark.parametrize("key", [*RANGES, "max_steps"])
def test_the_trainers_numbers_have_ranges(key: str) -> None:
    check_trainer_ranges(TRAINER)
    for value in (*NOT_FINITE, -2, 10**13):
        with pytest.raises(InputError, match=rf"^trainer\.{key} is "):
            check_trainer_ranges(TRAINER | {key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gradient_clip_val", -1),
        ("accumulate_grad_batches", 0),
        ("max_steps", 0),
        ("max_steps", -1),
        ("max_epochs", 0),
        ("max_time", "00:00:00:10"),
        ("devices", 0),
        ("devices", "0"),
        ("devices", 10**12),
        ("limit_train_batches", 0),
        ("limit_train_batches", 1),  # one batch, not all of them
        ("limit_train_batches", 0.5),
        ("limit_val_batches", 1.5),
        ("overfit_batches", 1),
        ("val_check_interval", 0),
        ("val_check_interval", 0.5),
        ("val_check_interval", "00:00:01:00"),
        ("check_val_every_n_epoch", 2),
        ("log_every_n_steps", 0),
        ("fast_dev_run", True),
        ("barebones", True),
    ],
)
def test_what_ends_a_run_early_or_cannot_be(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^trainer\.{key} is "):
        check_trainer_ranges(TRAINER | {key: value})


def test_callbacks_that_end_a_run_early() -> None:
    timer = {"class_path": "lightning.pytorch.callbacks.Timer", "init_args": {"duration": "00:00:00:01"}}
    with pytest.raises(InputError, match="before its last step"):
        check_trainer_ranges(TRAINER | {"callbacks": [timer]})


@pytest.mark.parametrize(("key", "value"), [("limit_train_batches", 1.0), ("max_epochs", -1), ("devices", "auto")])
def test_what_changes_nothing_is_taken(key: str, value: Any) -> None:
    check_trainer_ranges(TRAINER | {key: value})


def test_a_validation_needs_no_length() -> None:
    check_trainer_ranges(TRAINER | {"max_steps": -1}, trains=False)


@pytest.mark.parametrize(
    ("value", "hint", "says"),
    [
        (0, Annotated[int, Range(least=1)], "at least 1"),
        (0, Annotated[int, Range(least=1)] | None, "at least 1, or null"),
        (math.nan, Annotated[float, Range(above=0, most=2)], "a finite number, above 0 and at most 2"),
        (1.5, Annotated[int, Range(least=1)], "a whole number, at least 1"),
        ((0.5, 1.0), tuple[Annotated[float, Range(below=1)], ...], "a list, each item a finite number, below 1"),
        (0, Annotated[int, Range(least=1)] | Literal["log"], "a whole number, at least 1, or 'log'"),
        (10**9, Annotated[int, Range(most=10**6)], "at most 1,000,000"),
    ],
)
def test_messages_say_what_would_be_right(value: Any, hint: Any, says: str) -> None:
    with pytest.raises(InputError) as refused:
        check_value("key", value, hint)
    assert str(refused.value).endswith(f": it has to be {says}")


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (None, Annotated[int, Range(least=1)] | None),
        ("log", Annotated[int, Range(least=1)] | Literal["log"]),
        ({0.0: 1.0}, dict[Annotated[float, Range(below=1)], Annotated[float, Range(least=0)]]),
        ([1, 2], Sequence[Annotated[int, Range(least=1)]]),
        (1, Annotated[float, Range(most=1)]),
    ],
)
def test_what_fits(value: Any, hint: Any) -> None:
    check_value("key", value, hint)
