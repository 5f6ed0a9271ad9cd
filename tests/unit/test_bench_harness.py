"""Turns, medians and a quiet machine: how contenders are timed."""

import sys
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from types import SimpleNamespace

import pytest
from test_bench_train import CPU, tiny_workload

from mtp_lightning import machine
from mtp_lightning.bench import harness, overhead, train_measure
from mtp_lightning.bench.harness import IdleGate, Timing, interleaved, over, peak_memory_bytes
from mtp_lightning.machine import keep_freed_memory


def test_the_gate_waits_and_then_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = iter([0.2, 0.5, 0.95, 0.1, 0.1, 0.1])
    monkeypatch.setattr("mtp_lightning.bench.harness.idle_share", lambda seconds: next(shares))
    said: list[str] = []
    gate = IdleGate(patience=0.6, progress=said.append, window=0.2)
    assert gate() is False
    assert (len(said), gate.passed_busy) == (2, 0)
    assert gate() is True
    assert (len(said), gate.summary()) == (3, "1 of 2 steps on a busy machine")
    assert "waiting for a quiet machine (20% idle" in said[0]


def test_without_patience_the_gate_looks_and_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = iter([0.2, 1.0, None])
    monkeypatch.setattr("mtp_lightning.bench.harness.idle_share", lambda seconds: next(shares))
    gate = IdleGate(0.0, pytest.fail)
    assert (gate.summary(), gate.busy_steps) == ("whether the machine was busy was not looked at", None)
    assert (gate(), gate(), gate()) == (True, False, None)
    assert (gate.summary(), gate.busy_steps) == ("1 of 2 steps on a busy machine", 1)


def test_rounds_on_a_busy_machine_are_counted_and_few_others_are_not_judged() -> None:
    def timed(*busy: bool | None) -> Timing:
        said = iter(busy)
        timing = interleaved({"a": lambda: None}, len(busy), CPU, before_step=lambda: next(said))["a"]
        return replace(timing, wall=(1.0,) * len(busy))

    assert (len(timed(*[False] * 5).cpu), timed(*[False] * 5).busy) == (5, 0)
    assert timed(*[False] * 5).is_steady(by_cpu=False)
    assert not timed(*[False] * 4, True).is_steady(by_cpu=False)
    assert timed(*[False] * 5, True).is_steady(by_cpu=False), "five rounds were quiet"
    assert timed(*[None] * 5).busy is None
    assert timed(*[None] * 5).is_steady(by_cpu=False)
    assert not replace(timed(*[False] * 5), wall=(1.0, 1.3, 1.3, 1.3, 1.0)).is_steady(by_cpu=False)


def test_the_machine_is_as_idle_as_the_system_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 ticks of all processors 30 were idle, 5 of them waiting for a disk."""
    lines = iter(["cpu  100 0 50 800 20 0 0 0 9 9\n", "cpu  108 0 52 825 25 0 0 0 99 99\n"])
    monkeypatch.setattr(harness, "open", lambda *_, **__: StringIO(next(lines)), raising=False)
    waits: list[float] = []
    monkeypatch.setattr(harness, "time", SimpleNamespace(sleep=waits.append))
    assert harness.idle_share(0.2) == 0.75
    assert waits == [0.2]
    monkeypatch.setattr(harness, "_processor_ticks", lambda: None)
    assert harness.idle_share(0.2) is None, "where nothing is known, nobody waits"


def test_freed_memory_is_kept_where_the_c_library_can(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    glibc = SimpleNamespace(mallopt=lambda *args: calls.append(args) or 1)
    monkeypatch.setattr("ctypes.CDLL", lambda name: glibc)
    assert keep_freed_memory() is True
    assert calls == [(-3, 2**31 - 1), (-1, 2**31 - 1)], "M_MMAP_THRESHOLD, M_TRIM_THRESHOLD"
    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace())
    assert keep_freed_memory() is False


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        ("processor\t: 0\nmodel\t\t: 17\nmodel name\t: AMD EPYC 9B45\n\nprocessor\t: 1\n", "AMD EPYC 9B45"),
        (
            "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n",
            "aarch64, CPU implementer 0x41, CPU part 0xd40",
        ),
        ("processor : 0\n", "aarch64"),
    ],
)
def test_a_processor_is_named_as_the_system_says_it(lines: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.Path, "read_text", lambda *_, **__: lines)
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    assert harness.describe_machine(CPU, 1)["device"] == name


def test_every_contender_has_its_turn_in_every_round() -> None:
    calls: list[str] = []
    steps: dict[str, Callable[[], object]] = {name: (lambda name=name: calls.append(name)) for name in "ab"}  # type: ignore[misc]
    waits: list[int] = []
    interleaved(steps, 3, CPU, warmup=2, before_step=lambda: waits.append(len(calls)))
    assert calls == list("ababababab")
    assert waits == [4, 5, 6, 7, 8, 9], "before each counted step"


def test_the_median_is_reported_and_the_best_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of 2, 9 and 4 seconds by the wall and of 1, 3 and 8 by the processor; the warm-up's 100 do not count."""
    now = SimpleNamespace(wall=0.0, cpu=0.0)
    spent = iter([(100.0, 100.0), (2.0, 1.0), (9.0, 3.0), (4.0, 8.0)])

    def step() -> None:
        wall, cpu = next(spent)
        now.wall, now.cpu = now.wall + wall, now.cpu + cpu

    clocks = SimpleNamespace(perf_counter=lambda: now.wall, process_time=lambda: now.cpu)
    monkeypatch.setattr(harness, "time", clocks)
    timing = interleaved({"a": step}, 3, CPU)["a"]
    assert timing == Timing(wall=(2.0, 9.0, 4.0), cpu=(1.0, 3.0, 8.0))
    figures = {"median": 4.0, "best": 2.0, "cpu": 3.0, "cpu_best": 1.0, "rounds": 3, "busy": None, "steady": False}
    assert timing.figures(by_cpu=False) == figures | {"seconds": [2.0, 9.0, 4.0]}


def test_one_thread_is_judged_by_its_processor_time_and_several_by_the_clock() -> None:
    timing = Timing(wall=(4.0, 3.0), cpu=(2.0, 1.0))
    assert (timing.judged(by_cpu=True), timing.judged(by_cpu=False)) == ((2.0, 1.0), (4.0, 3.0))


def test_a_ratio_is_of_rounds_so_that_a_machine_that_slows_down_takes_no_side() -> None:
    """Half as long in every round, though the median of all its rounds is the other's."""
    assert over([1.0, 2.0, 4.0], [2.0, 4.0, 8.0]) == 0.5
    assert over([1.0, 9.0, 4.0], [1.0, 3.0, 8.0]) == 1.0


def test_products_count_two_operations_for_each_weight_and_row() -> None:
    workload = tiny_workload()
    _, flops = train_measure.matrix_products(workload)
    assert flops == train_measure.PRODUCTS * 2 * workload.tokens * workload.backbone.dim * workload.backbone.ffn


def test_overheads_are_milliseconds_above_the_bare_loop_of_the_same_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """A median does not see what one step in three does; a mean does."""
    bare = iter([[2.0, 1.0, 9.0], [1.0, 2.0, 3.0]])
    in_turn = iter([[2.0, 2.0, 2.5], [1.0, 2.0, 9.0]])
    logged = {
        (False, 10 * overhead.STEPS): iter([[2.0, 2.1, 2.2], [9.0] * 3]),
        (False, 1): iter([[3.0] * 3, [2.5] * 3]),
        (True, 1): iter([[4.0, 4.0, 40.0], [7.0, 3.0, 50.0]]),
    }
    monkeypatch.setattr(overhead, "bare_steps", lambda *_: next(bare))
    monkeypatch.setattr(
        overhead,
        "trainer_steps",
        lambda *_, mlflow=False, log_every=1, alone=False: next(in_turn if alone else logged[mlflow, log_every]),
    )
    found = overhead.step_overheads(tiny_workload(), 2, 2, True, lambda: None, lambda text: None)
    assert {name: (each["median"], each["mean"]) for name, each in found.items()} == {
        "Lightning alone, a module without records": (0.0, pytest.approx(1e3 * (6.5 / 3 - 4.0 + 4.0 - 2.0) / 2)),
        "Lightning, steps not logged": (pytest.approx(3550.0), pytest.approx(2550.0)),
        "Lightning, every step logged": (750.0, -250.0),
        "Lightning and MLflow": (3500.0, 15000.0),
    }, "beside the bare loop of its own round"
    assert {(each["busy"], each["steady"]) for each in found.values()} == {(None, False)}, "two rounds are few"
    starts = [float(step) for step in range(overhead.FIRST)] + [10.0, 12.0, 15.0]
    assert overhead._differences(starts) == [2.0, 3.0], "the first are not counted"


def test_an_overhead_is_judged_by_the_rounds_in_which_nobody_used_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round begins with the bare loop; of six, one was disturbed there, another at the third way to run."""
    ran: list[str] = []
    monkeypatch.setattr(overhead, "bare_steps", lambda *_: ran.append("bare") or [1.0])
    monkeypatch.setattr(overhead, "trainer_steps", lambda *_, **__: ran.append("Lightning") or [1.0])
    found = overhead.step_overheads(tiny_workload(), 2, 6, True, lambda: len(ran) in (10, 5 + 3), lambda text: None)
    said = {name: (each["busy"], each["steady"]) for name, each in found.items()}
    assert said == dict.fromkeys(said, (1, True)) | {overhead.LOGGED: (2, False)}


def test_a_measured_process_that_dies_says_how() -> None:
    with pytest.raises(RuntimeError, match="died with exit status 3"):
        peak_memory_bytes(sys.exit, 1, 3)


def test_where_the_high_water_mark_cannot_be_reset_memory_is_measured_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_proc(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(harness.Path, "write_text", no_proc)
    monkeypatch.setattr(harness.Path, "read_text", no_proc)
    assert harness._reset_high_water_mark() > 0
