"""What every number, switch and choice of a configuration may be at the most is tried: the run is refused by that key,
trains for a few steps to finite losses, or says that it diverged.

Longer than other files: how a field's extremes follow from its type, and how a run of them is judged, are one walk.
"""

import contextlib
import importlib
import math
import re
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import lightning.pytorch as pl
import pytest
import yaml
from small_runs import SMALL, fit, make_folder
from typing_extensions import override

from mtp_lightning.cli import main
from mtp_lightning.config.config_files import find_config
from mtp_lightning.config.keys.linked_keys import LINKS
from mtp_lightning.config.one_config import check_config, parse_config
from mtp_lightning.config.trainer_ranges import RANGES
from mtp_lightning.errors import PREEMPTED, InputError, Preempted
from mtp_lightning.module import MTPModule
from mtp_lightning.ranges import Range, Workers

STEPS = 4
HANG_SECONDS = 30
"""Of the processor."""
GROWN_GIB = 4
"""More in these seconds, and the machine's memory is next."""
INTS = (0, 1, 2, 5)
FLOATS = (0.0, 1e-45, 1.0)
CALLBACKS = [
    {"class_path": name} for name in ("callbacks.throughput.ThroughputMonitor", "callbacks.heartbeat.Heartbeat")
]


def task(name: str, vocab_size: int, **arguments: Any) -> dict[str, Any]:
    made = {"class_path": f"mtp_lightning.data.{name}", "init_args": arguments}
    return {
        "model": {"backbone": {"vocab_size": vocab_size}},
        "data": {
            "class_path": "mtp_lightning.data.TaskDataModule",
            "init_args": {"task": made, "context": 32, "batch_size": 2, "test_size": 4},
        },
        "trainer": {"callbacks": [*CALLBACKS, {"class_path": "callbacks.exact_match.ExactMatchProbe"}]},
    }


def corpus(kind: str, probe: str, **arguments: Any) -> dict[str, Any]:
    """Questions or stories of the generator, with a probe of theirs."""
    return {
        "data": {
            "class_path": "mtp_lightning.data.TokenDataModule",
            "init_args": {
                "source": {"kind": kind, "path": None, "max_documents": 40},
                "context": 256,
                "batch_size": 2,
                "val_windows": 2,
                "validation_fraction": 0.3,
            },
        },
        "trainer": {"callbacks": [*CALLBACKS, {"class_path": f"callbacks.{probe}", "init_args": arguments}]},
    }


BENCHMARK = {"task": "gsm8k", "data": "gsm8k.jsonl", "limit": 1, "max_new_tokens": 2}
OVERLAYS: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "sequential": {
        "model": {
            "heads": {"kind": "sequential"},
            "optimizer": {"kind": "muon"},
            "schedule": {"kind": "wsd", "warmup_steps": 1, "decay_steps": 1},
            "recompute": {"every": 2},
            "loss": {"weights": {"lam": {0.0: 0.3, 0.5: 0.1}}},
        },
        "trainer": {
            "callbacks": [
                *CALLBACKS,
                {
                    "class_path": "callbacks.checkpointing.PeriodicCheckpoint",
                    "init_args": {"kind": "sharded", "background": True},
                },
            ]
        },
    },
    "order": {
        "model": {"heads": {"kind": "order"}, "backbone": {"rope_scaling": {"kind": "yarn", "original_context": 8}}}
    },
    "mixture": {
        "data": {
            "init_args": {
                "source": {"kind": "python_stdlib", "path": None},
                "mixture": [
                    {"source": {"kind": "text", "path": "corpus"}, "weight": {0: 1, 2: 3}},
                    {"source": {"kind": "stories", "max_documents": 30}, "weight": 2},
                ],
            }
        }
    },
    "epochs": {
        "data": {
            "init_args": {
                "source": {"kind": "python_stdlib", "path": None},
                "mixture": [
                    {"source": {"kind": "text", "path": "corpus"}, "epochs": 2.0},
                    {"source": {"kind": "stories", "max_documents": 30}, "epochs": 1.0},
                ],
            }
        }
    },
    "init": {"model": {"init": {"path": "runs/first", "heads": "copy"}, "freeze": "trunk", "heads": {"match": "none"}}},
    "pairs": corpus("story_pairs", "exact_match.ExactMatchProbe"),
    "stories": corpus("stories", "induction.InductionProbe"),
    "evaluation": corpus("stories", "evaluation.EvaluationProbe", **BENCHMARK),
    "decoding": corpus("stories", "decoding.DecodingProbe"),
    "star_graph": task("StarGraph", 13, degree=2, length=3, labels=10),
    "polynomial": task("Polynomial", 13, modulus=7, degree=5, train_operations=1, test_operations=2),
    "execution": task("Execution", 61, train_operations=1, test_operations=2),
}  # fmt: skip


def typed(owner: type, values: Mapping[str, Any], path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(where it is, its type) of all that is not made of further parts, of a class's arguments."""
    hints = get_type_hints(owner if is_dataclass(owner) else owner.__init__, include_extras=True)  # type: ignore[misc]
    for name, value in values.items():
        if name in hints:
            yield from typed_value(hints[name], value, (*path, name))


def typed_value(hint: Any, value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    made = [part for part in (hint, *get_args(hint)) if is_dataclass(part)]
    if isinstance(value, Mapping) and "class_path" in value:
        module, _, name = value["class_path"].rpartition(".")
        owner = getattr(importlib.import_module(module), name)
        yield from typed(owner, value.get("init_args") or {}, (*path, "init_args"))
    elif isinstance(value, Mapping) and made:
        yield from typed(made[0], value, path)
    elif isinstance(value, Sequence) and not isinstance(value, str) and value and isinstance(value[0], Mapping):
        parts = [part for arg in get_args(hint) for part in (arg, *get_args(arg))]
        for i, one in enumerate(value):
            yield from typed_value(next((part for part in parts if is_dataclass(part)), None), one, (*path, i))
    else:
        yield path, hint


def extremes(hint: Any, now: Any) -> list[Any]:
    """Values of a type: the ends of its range, and what is odd inside it."""
    origin, args = get_origin(hint), get_args(hint)
    if hint in (None, NoneType):
        return [None]
    if hint is bool:
        return [False, True]
    if origin is Literal:
        return [*args]
    if hint == Workers:
        return [0, 1]  # more would test this machine
    if origin is Annotated:
        (held,) = [part for part in hint.__metadata__ if isinstance(part, Range)]
        ends = [held.least, held.most, held.above, held.below]
        found = {float(x) for x in (*FLOATS, *ends) if x is not None}
        if held.above is not None:
            found.add(math.nextafter(held.above, math.inf))
        if held.below is not None:
            found.add(math.nextafter(held.below, -math.inf))
        if args[0] is int:
            return sorted({int(x) for x in (*INTS, *ends) if x is not None})
        return sorted(found)
    if origin in (Union, UnionType):
        return [value for part in args for value in extremes(part, now)]
    if origin is dict:
        return [{key: value} for key in extremes(args[0], None)[:2] for value in extremes(args[1], None)]
    if origin is tuple and Ellipsis not in args:
        return [(*(one if i == at else old for i, old in enumerate(now)),) for at, part in enumerate(args)
                for one in extremes(part, None)]  # fmt: skip
    if origin is not None and args:
        return [[value] for value in extremes(args[0], None)] + [[value, value] for value in extremes(args[0], None)]
    return []


PROCESSES = ("devices", "num_nodes", "accelerator", "strategy")
"""Keys of which other values start, or wait for, other processes."""


def trainer_fields(trainer: Mapping[str, Any]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Lightning's own arguments; the numbers by our ranges."""
    hints = get_type_hints(pl.Trainer.__init__)
    for name, value in trainer.items():
        if name in PROCESSES:
            continue
        if name in RANGES:
            yield ("trainer", name), RANGES[name]
        elif name in ("callbacks", "logger"):
            yield from typed_value(Any, value, ("trainer", name))
        elif name in hints:
            parts = get_args(hints[name]) or (hints[name],)
            yield from (
                (("trainer", name), Annotated[part, Range()] if part in (int, float) else part)
                for part in parts
                if part in (int, float, bool, NoneType) or get_origin(part) is Literal
            )


def merged(base: Any, over: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    if "class_path" in over and over["class_path"] != base.get("class_path"):
        return over  # a class's arguments are its own
    return base | {key: merged(base.get(key), value) for key, value in over.items()}


def changed(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = [*tree] if isinstance(tree, list) else dict(tree)
    copy[path[0]] = changed(tree[path[0]], path[1:], value)
    return copy


def cases(plain: Mapping[str, Any], overlay: Mapping[str, Any]) -> list[tuple[tuple[Any, ...], Any]]:
    """(where, value) of all fields that an overlay is about; of all where it is about nothing."""
    fields = [*typed(MTPModule, plain["model"], ("model",)), *trainer_fields(plain["trainer"])]
    fields += [
        *typed_value(Any, plain["data"], ("data",)),
        (("seed_everything",), Annotated[int, Range(0, most=2**32 - 1)]),
    ]
    linked = {target for _, target, _ in LINKS}
    about = {key if key == "data" else (key, part) for key, parts in overlay.items() for part in parts}
    kept = [
        (path, hint)
        for path, hint in fields
        if ".".join(map(str, path)) not in linked and (not overlay or path[0] in about or path[:2] in about)
    ]
    return [(path, value) for path, hint in kept for value in extremes(hint, at(plain, path))]


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


class Watch(pl.Callback):
    """Remembers losses, and ends what would go on for longer than a few steps."""

    losses: ClassVar[dict[str, float]] = {}

    def keep(self, trainer: pl.Trainer) -> None:
        named = {name: float(value) for name, value in trainer.callback_metrics.items()}
        Watch.losses |= {name: value for name, value in named.items() if name.startswith(("train/loss", "val/"))}

    @override
    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.keep(trainer)
        if trainer.global_step >= STEPS:
            raise Preempted(PREEMPTED)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.keep(trainer)


class Hang(BaseException):
    pass


def _hang(*_: object) -> None:
    raise Hang


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    before = signal.signal(signal.SIGPROF, _hang)
    signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def peak() -> int:
    """Bytes that were in memory at most since the last call, on Linux."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    Path("/proc/self/clear_refs").write_text("5")
    return int(found[1]) << 10 if found else 0


def wrong(plain: Any, path: tuple[Any, ...], value: Any, capsys: pytest.CaptureFixture[str], parsed: Any) -> str | None:
    """What is wrong with how a run of this configuration ends, if something is."""
    key = ".".join(map(str, path))
    config = changed(plain, path, value)
    Path("mutated.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    shutil.rmtree("runs/tried", ignore_errors=True)
    Watch.losses = {}
    said, before = "", peak()
    try:
        with bounded():
            try:
                check_config(parse_config([Path("mutated.yaml")], {}, parsed))
                capsys.readouterr()
                status = main(["fit", "-c", "mutated.yaml"])
            except InputError as error:
                status, said = 2, str(error)
            except Preempted:
                status = 0
    except Hang:
        grown = (peak() - before) >> 30
        if (
            isinstance(value, int) and value >= 1000 and grown < GROWN_GIB
        ):  # things gone through one by one: as long as was asked for
            return None
        return f"{key} = {value!r:.40}: longer than {HANG_SECONDS} s, and {grown} GiB"
    except BaseException as error:
        return f"{key} = {value!r:.40}: {type(error).__name__}: {str(error)[:300]}"
    said = said or capsys.readouterr().err
    if status == 2:
        named = re.search(r"\b(model|data|trainer|seed_everything|[A-Z]\w+)\b\.?\w+", said)
        return None if named else f"{key} = {value!r:.40}: refused, and no key is named: {said[-300:]}"
    if status == 1:
        return None if "diverged at step" in said else f"{key} = {value!r:.40}: {said[-300:]}"
    infinite = {name: loss for name, loss in Watch.losses.items() if not math.isfinite(loss)}
    if infinite or not Watch.losses:
        return f"{key} = {value!r:.40}: losses {infinite or Watch.losses}"
    return None


def prepared(folder: Path, overlay: Mapping[str, Any]) -> tuple[Any, Any]:
    """(resolved configuration without what follows from other keys, its parse)."""
    make_folder(folder)
    (folder / "gsm8k.jsonl").write_text('{"question": "How many?", "answer": "Two. #### 2"}\n')
    if "init" in overlay.get("model", {}):
        assert fit("runs/first", "--trainer.max_steps=3", "--trainer.logger=false", "--model.heads.match=none") == 0
    small = merged(
        yaml.safe_load(SMALL), {"trainer": {"max_steps": 3, "val_check_interval": 3, "default_root_dir": "runs/tried"}}
    )
    (folder / "whole.yaml").write_text(yaml.safe_dump(merged(small, overlay), sort_keys=False))
    parsed = parse_config([find_config("conf/base.yaml"), folder / "whole.yaml"], {})
    plain = parsed.plain
    for _, target, _ in LINKS:
        holder, name = plain, target.split(".")
        for part in name[:-1]:
            holder = holder[part]
        holder.pop(name[-1], None)
    plain.pop("config", None)
    if overlay:
        plain["trainer"]["logger"] = False
    plain["trainer"]["callbacks"].append({"class_path": "test_config_extreme_values.Watch"})
    return plain, parsed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("shapes_unchecked")  # they cannot be compiled
@pytest.mark.parametrize("name", OVERLAYS)
def test_every_extreme_value_that_is_accepted_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["mtp"])
    plain, parsed = prepared(tmp_path, OVERLAYS[name])
    tried = cases(plain, OVERLAYS[name])
    assert len(tried) > 20
    found = [wrong(plain, path, value, capsys, parsed) for path, value in tried]
    assert "\n".join(filter(None, found)) == ""
