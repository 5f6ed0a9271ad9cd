"""`mtp bench train`: where the time of a step goes, and results as they come."""

from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from test_bench_train import tiny_workload

from mtp_lightning.bench import train_command, train_measure
from mtp_lightning.bench.harness import IdleGate
from mtp_lightning.bench.overhead import LOGGED, MLFLOW, NOT_LOGGED
from mtp_lightning.bench.train_contenders import UPDATE, Arm
from mtp_lightning.bench.train_measure import bench_train
from mtp_lightning.bench.train_parts import EXTRA, HEADINGS, PARTS, STEP, booked, parts_table, with_extra


def test_every_event_of_a_step_is_booked_once_by_the_outermost_that_has_a_part() -> None:
    """A product in the loss is the loss's; what is outside of all steps is nobody's."""
    events: list[SimpleNamespace] = []

    def add(name: str, milliseconds: float, parent: SimpleNamespace | None) -> SimpleNamespace:
        whole = milliseconds * 1e3 + 7e6  # with the events inside, which are booked by themselves
        event = SimpleNamespace(
            name=name, self_cpu_time_total=milliseconds * 1e3, cpu_time_total=whole, cpu_parent=parent
        )
        events.append(event)
        return event

    step = add(STEP, 1, None)
    add("aten::mm", 2, add("aten::matmul", 4, add("_ChunkedNLLBackward", 8, add("autograd::engine", 16, step))))
    add("aten::_fused_adamw_", 32, add(UPDATE, 64, step))
    add("aten::bmm", 128, add("aten::matmul", 256, step))
    add("aten::mm", 512, add("## Call CompiledFxGraph", 1024, step))
    add("aten::mm", 4096, None)
    seconds = {"python": 1, "loss": 2 + 4 + 8, "optimizer": 96, "attention": 128, "small": 16 + 256 + 1024}
    expected = {part: pytest.approx(milliseconds / 1e3) for part, milliseconds in (seconds | {"products": 512}).items()}
    assert booked(events) == expected
    assert expected.keys() == set(PARTS)


def test_parts_of_ours_are_all_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that is large enough for the profiler's own cost: all parts are there, and they are the step."""
    monkeypatch.setattr(train_measure, "read_bandwidth", lambda nbytes, clock: 1e3 * nbytes)
    workload = tiny_workload(context=128, batch=4, bfloat16=True)
    arms = [Arm("ours", 2, False), Arm("ours", 2, False, "layers"), Arm("naive", 2, False)]
    rows = bench_train(workload, arms, 1, 3, False, IdleGate(0.0), lambda text: None)
    assert ["parts" in row for row in rows] == [True, False, False]
    parts = rows[0]["parts"]
    assert parts["busy"] in (True, False)
    assert all(parts[part] > 0 for part in PARTS)
    assert 0.4 < parts["sum"] == pytest.approx(sum(parts[part] for part in PARTS))
    assert parts["sum"] < 3, "the profiler's own cost, of operations on 32 numbers, and other processes"
    flops = workload.tokens * rows[0]["flops_per_token"]
    assert parts["limit_products"] == pytest.approx(1e3 * flops / rows[0]["peak_flops_per_second"])
    assert parts["limit_reading"] == pytest.approx(1.0)
    assert parts["milliseconds"] == pytest.approx(1e3 * workload.tokens / rows[0]["tokens_per_second"])


def test_data_and_logging_come_on_top_of_a_step() -> None:
    overheads = {
        NOT_LOGGED: {"median": 0.0, "mean": 0.2}, LOGGED: {"median": 0.0, "mean": 9.0},
        MLFLOW: {"median": 0.0, "mean": 2.2},
    }  # fmt: skip
    found = with_extra({"milliseconds": 100.0, "sum": 1.0}, 0.5, overheads)
    assert found == {"milliseconds": 100.0, "sum": 1.0, "data": 0.005, "logging": pytest.approx(0.004)}
    row: dict[str, Any] = {"vocab_size": 16, "n_future": 2, "compiled": True, "parts": dict.fromkeys(HEADINGS, 0.25)}
    bare = row | {"parts": {key: 0.25 for key in HEADINGS if key not in EXTRA}}
    console = Console(width=160, record=True)
    console.print(parts_table([row, bare], "here"))
    text = console.export_text()
    assert "…" not in text
    assert "25.0%" in text
    table = parts_table([row, row | {"parts": row["parts"] | {"busy": True}}], "here")
    (whole,) = (list(column.cells) for column in table.columns if column.header == HEADINGS["milliseconds"])
    assert whole[1] == f"({whole[0]})", "others used the machine"


def test_each_vocabulary_is_shown_as_soon_as_it_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before: list[str] = []
    real = train_command.bench_train

    def measured(*given: Any) -> Any:
        before.append(capsys.readouterr().out)
        return real(*given)

    monkeypatch.setattr(train_command, "bench_train", measured)
    train_command.train_command(
        n_future=[1], vocab_size=[16, 24], contenders=["ours"], dim=32, n_layers=3, n_heads=2, ffn_dim=48,
        context=8, batch=2, rounds=1, memory=False, overhead=False,
    )  # fmt: skip
    assert ["V = 16" in text for text in before] == [False, True]
    after = capsys.readouterr().out
    assert "V = 24" in after
    assert "Where the time of a step of ours goes" in after


def test_what_was_measured_on_a_busy_machine_stands_in_brackets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = {"median": 1.0, "mean": 2.0, "busy": 0, "steady": True}
    overheads = {NOT_LOGGED: quiet, LOGGED: quiet, MLFLOW: quiet | {"busy": 1, "steady": False}}
    monkeypatch.setattr(train_command, "step_overheads", lambda *_: overheads)
    monkeypatch.setattr(train_command, "seconds_a_batch", lambda *_: 0.001)
    monkeypatch.setattr("mtp_lightning.bench.harness.idle_share", lambda seconds: 0.2)
    train_command.train_command(
        n_future=[1], vocab_size=[16], contenders=["ours"], dim=32, n_layers=3, n_heads=2, ffn_dim=48, context=8,
        batch=2, rounds=1, memory=False,
    )  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert f"{NOT_LOGGED}: +1.00 ms a step above the bare loop, +2.00 on average" in lines
    says = "(+1.00 ms a step above the bare loop, +2.00 on average), 1 of 1 rounds on a busy machine"
    assert f"{MLFLOW}: {says}" in lines
    assert lines[-1].startswith("reading windows: (1.00 ms a step")
    assert lines[-1].endswith("of ours), on a busy machine")
    assert "data and logging, of n = 1 and V = 16, on top of it" in " ".join(" ".join(lines).split())
