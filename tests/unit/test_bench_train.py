"""`mtp bench train`: contenders compute the same thing, so that their times compare; ratios, bad input."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from compiling import needs_compiler
from tiny import tiny_backbone
from torch import Tensor, nn

from mtp_lightning.bench import loader, overhead, train_command, train_measure
from mtp_lightning.bench.harness import IdleGate
from mtp_lightning.bench.train_contenders import (
    CONTENDERS,
    Arm,
    Workload,
    arms,
    check_contenders,
    flops_of,
    make_step,
    missing_packages,
    prepared_step,
)
from mtp_lightning.bench.train_measure import bench_train, label, ratios
from mtp_lightning.bench.train_report import FIGURES, train_table
from mtp_lightning.cli import main
from mtp_lightning.data.loader import ResumableLoader, read_windows
from mtp_lightning.errors import InputError
from mtp_lightning.interop.hf_names import to_llama_state_dict
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.module import MTPModule

CPU = torch.device("cpu")


def tiny_workload(**changes: object) -> Workload:
    settings = {"context": 9, "batch": 2, "bfloat16": False, "device": "cpu"} | changes
    return Workload(tiny_backbone(n_layers=5), **settings)  # type: ignore[arg-type]


def learned(
    name: str, n: int, weights: Callable[[nn.Module], None] = lambda model: None
) -> tuple[nn.Module, float, dict[str, Tensor]]:
    """(model, loss, gradients by name) of one contender on the common window."""
    workload = tiny_workload()
    torch.manual_seed(0)
    model, learn = CONTENDERS[name](workload, n, False)
    weights(model)
    loss = learn(workload.window(n)).item()
    return model, loss, {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow
@needs_compiler
@pytest.mark.filterwarnings("ignore")  # of torch's compiler
def test_a_compiled_contender_never_falls_back_to_uncompiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's loop compiles every head for itself: nine are more than torch compiles one function by default."""
    for name in ("recompile_limit", "accumulated_recompile_limit", "fail_on_recompile_limit_hit"):
        monkeypatch.setattr(torch._dynamo.config, name, getattr(torch._dynamo.config, name))  # as it was, afterwards
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    workload = replace(tiny_workload(), backbone=tiny_backbone(n_layers=10))
    for step in (make_step(Arm("paper", 9, compiled), workload)[1] for compiled in (False, True)):
        assert torch.isfinite(step())


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("name", ["naive", "paper"])
def test_plain_contenders_have_our_loss_and_our_gradients(name: str, n: int) -> None:
    model, loss, gradients = learned("ours", n)
    _, their_loss, theirs = learned(name, n, lambda plain: plain.load_state_dict(model.state_dict()) and None)
    assert their_loss == pytest.approx(loss, rel=1e-5)
    assert theirs.keys() == gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(theirs[key], gradient, rtol=1e-4, atol=1e-5, msg=key)


def test_hugging_faces_llama_has_our_loss_on_our_weights() -> None:
    pytest.importorskip("transformers")
    model, loss, _ = learned("ours", 1)
    assert isinstance(model, MTPModel)
    state = to_llama_state_dict(model)
    _, their_loss, _ = learned("huggingface", 1, lambda llama: llama.load_state_dict(state) and None)
    assert their_loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("arm", arms(list(CONTENDERS), [1, 4], [False]), ids=label)
def test_contenders_are_of_equal_size_and_learn(arm: Arm) -> None:
    if missing_packages([arm.contender]):
        pytest.skip(f"{arm.contender} is not installed")
    workload = tiny_workload(bfloat16=True)
    learner, step = make_step(arm, workload)
    ours = make_step(Arm("ours", 1, False), workload)[0].model
    assert sum(p.numel() for p in learner.model.parameters()) == sum(p.numel() for p in ours.parameters())
    losses = [step().item() for _ in range(30)]
    assert losses[-1] < losses[0]
    assert all(p.grad is None for p in learner.model.parameters())


def test_peers_without_heads_stand_at_one_future_token() -> None:
    rows = arms(["ours", "huggingface"], [1, 4], [False, True])
    assert [row[:3] for row in rows] == [
        ("ours", 1, False), ("ours", 1, True), ("huggingface", 1, False), ("huggingface", 1, True),
        ("ours", 4, False), ("ours", 4, True),
    ]  # fmt: skip


def test_flops_by_hand() -> None:
    """5 layers of 4 d^2 + 3 d ffn weights, n unembeddings of V d, 6 T d a layer of attention."""
    d, ffn, V, T = 32, 48, 16, 9
    for n in (1, 4):
        expected = 6 * (5 * (4 * d * d + 3 * d * ffn) + n * V * d) + 5 * 6 * T * d
        assert flops_of(Arm("naive", n, False), tiny_workload()) == expected


def test_windows_of_all_contenders_are_the_same() -> None:
    workload = tiny_workload()
    assert workload.window(2).shape == (2, 11)
    assert torch.equal(workload.window(2), workload.window(2))


def row(contender: str, n: int, rate: float, size: int = 4096, **changes: Any) -> dict[str, Any]:
    values = {
        "contender": contender, "n_future": n, "compiled": True, "recompute": "none", "vocab_size": size,
        "tokens_per_second": rate, "best_tokens_per_second": rate, "seconds": [1 / rate] * 5, "steady": True,
        "flops_per_token": 100 + 50 * n, "share_of_peak": 0.5, "peak_bytes": 1000 * n, "busy": 0,
    }  # fmt: skip
    return values | changes


def test_ratios_by_hand() -> None:
    rows = ratios([
        row("ours", 1, 600.0), row("ours", 4, 360.0, peak_bytes=1500), row("naive", 1, 400.0),
        row("naive", 4, 180.0), row("huggingface", 1, 500.0), row("huggingface", 1, 100.0, compiled=False),
    ])  # fmt: skip
    one, four = rows[:2]
    assert one["over_huggingface"] == pytest.approx(1.2)
    assert four["over_naive"] == pytest.approx(2.0)
    assert four["tokens_over_n1"] == pytest.approx(0.6)
    assert four["flops_n1_over"] == pytest.approx(150 / 300)
    assert four["efficiency"] == pytest.approx(1.2)
    assert (four["memory_over_naive"], four["memory_over_naive_n1"]) == (1500 / 4000, 1.5)
    assert rows[-1]["over_naive"] is None, "an eager row has no compiled base"


def test_tables_show_every_figure() -> None:
    rows = ratios([row("ours", 1, 600.0, steady=False), row("naive", 1, 400.0)])
    table = train_table(rows, "title", "caption")
    assert len(table.columns) == 3 + len(FIGURES) - 2, "nothing is recomputed"
    assert list(table.columns[3].cells) == ["(600)", "400"]
    assert list(table.columns[5].cells) == ["-", "-"], "without Hugging Face there is no ratio to it"


def test_rows_of_a_real_run_carry_what_the_table_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory by the same function, but in this process: a new one loads torch for seconds."""
    ran: list[Arm] = []

    def peak(prepare: Callable[..., Callable[[], object]], threads: int, arm: Arm, workload: Workload) -> int:
        prepare(arm, workload)()
        ran.append(arm)
        return 1000

    monkeypatch.setattr(train_measure, "peak_memory_bytes", peak)
    wanted = [Arm("ours", 2, False), Arm("naive", 2, False)]
    rows = bench_train(tiny_workload(), wanted, 1, 2, True, IdleGate(0.0, print), lambda text: None)
    assert ran == wanted
    parameters = sum(p.numel() for p in make_step(wanted[0], tiny_workload())[0].model.parameters())
    for each in rows:
        assert each["peak_bytes"] == 1000 + 12 * parameters, "weights and two moments of four bytes each"
        assert 0 < each["tokens_per_second"] <= each["best_tokens_per_second"]
        assert each["memory_over_naive"] == 1
        rate = each["flops_per_token"] * each["tokens_per_second"]
        assert each["share_of_peak"] == pytest.approx(rate / each["peak_flops_per_second"])
    assert prepared_step(wanted[0], tiny_workload())() is not None


def test_the_overhead_runs_make_the_same_steps_and_log_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """MLflow's own migrations of a new store take seconds, so its logger is only made here. What was logged is written
    before the counted steps begin, and before they end."""
    monkeypatch.setattr(overhead, "STEPS", 8)
    assert overhead._mlflow_logger(tmp_path).tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
    loggers = [overhead._memory_logger() for _ in range(4)]
    written: list[int] = []
    monkeypatch.setattr(loggers[3], "flush", lambda: written.append(len(loggers[3].points)))
    given = iter(loggers[:3])
    monkeypatch.setattr(overhead, "_memory_logger", lambda: next(given))
    monkeypatch.setattr(overhead, "_mlflow_logger", lambda folder: loggers[3])
    loaded: list[int] = []
    real = ResumableLoader.__iter__
    monkeypatch.setattr(ResumableLoader, "__iter__", lambda own: loaded.append(1) or real(own))
    fitted: list[tuple[bool, list[str]]] = []
    fit = pl.Trainer.fit

    def watched(own: pl.Trainer, module: Any, *given: Any) -> None:
        fit(own, module, *given)
        fitted.append((isinstance(module, MTPModule), [each.interval for each in own.lr_scheduler_configs]))

    monkeypatch.setattr(pl.Trainer, "fit", watched)
    found = overhead.step_overheads(tiny_workload(), 2, 1, True, lambda: None, lambda text: None)
    assert fitted == [(False, ["step"]), *[(True, ["step"])] * 3], "Lightning alone, with the schedule that ours has"
    assert list(found) == [overhead.ALONE, overhead.NOT_LOGGED, overhead.LOGGED, overhead.MLFLOW]
    assert loaded, "by the loader of `mtp fit`"
    steps = [[step for step, metrics in own.points if "train/gradient_norm" in metrics] for own in loggers]
    assert steps == [[], [], list(range(1, 9)), list(range(1, 9))]
    assert len(written) == 2
    assert written[0] < written[1] == len(loggers[3].points)


def test_the_overhead_model_has_as_many_tensors_and_few_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def looked(workload: Workload, n_future: int, *_: Any, **__: Any) -> list[float]:
        model = make_step(Arm("ours", n_future, False), workload)[0].model
        seen.append((len(list(model.parameters())), sum(p.numel() for p in model.parameters())))
        return [1.0]

    for name in ("bare_steps", "trainer_steps"):
        monkeypatch.setattr(overhead, name, looked)
    workload = replace(tiny_workload(), backbone=tiny_backbone(n_layers=5, vocab_size=999, dim=64))
    overhead.step_overheads(workload, 2, 1, True, lambda: None, lambda text: None)
    tensors = len(list(make_step(Arm("ours", 2, False), workload)[0].model.parameters()))
    assert {count for count, _ in seen} == {tensors}
    assert all(numbers < 30_000 for _, numbers in seen)


def test_what_reading_costs_is_said_beside_our_quickest_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Size] = []
    real = read_windows

    def watched(*given: Any) -> Any:
        batch = real(*given)
        seen.append(batch["tokens"].shape)
        return batch

    monkeypatch.setattr("mtp_lightning.data.loader.read_windows", watched)
    monkeypatch.setattr(loader, "TOKENS", 8000)
    assert loader.seconds_a_batch(tiny_workload(), 2, by_cpu=False) > 0
    assert seen == [(2, 11)] * loader.BATCHES
    rows = [{"contender": name, "tokens_per_second": rate} for name, rate in (("naive", 90), ("ours", 18), ("ours", 9))]
    assert loader.loader_cost(0.01, tiny_workload(), rows) == {"ms": 10.0, "share_of_step": pytest.approx(0.01)}
    assert loader.loader_cost(0.01, tiny_workload(), rows[:1]) == {"ms": 10.0}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--contenders", "[ours,hugingface]"], "there is no 'hugingface'; did you mean 'huggingface'?"),
        (["--n_future", "[1,6]"], "n_future is 6 and n_layers is 6"),
        (["--n_future", "[0]"], "n_future is 0"),
        (["--dtype", "fp16"], "dtype is 'fp16'"),
        (["--rounds", "0"], "rounds is 0"),
        (["--n_layers", "1"], "n_layers is 1: it has to be at least 2"),
        (["--vocab_size", "[16, 0]"], "vocab_size is 0"),
        (["--dim", "30"], r"model.backbone.dim is 30"),
        (
            ["--contenders", "[huggingface]", "--n_future", "[4]"],
            "nothing to measure. huggingface: it predicts one token, and n_future is [4]",
        ),
        (["--patience", ".nan"], "patience is nan"),
    ],
)
def test_bad_input(flags: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", *flags]) == 2
    assert says in capsys.readouterr().err


def test_contenders_are_known_by_name() -> None:
    assert check_contenders(None) == ["ours", "naive", "paper", "huggingface", "litgpt"]
    with pytest.raises(InputError, match="there is no 'x'"):
        check_contenders(["x"])


def test_the_command_prints_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        train_command, "missing_packages", lambda names: {"litgpt": "fetch it"} if "litgpt" in names else {}
    )
    file = tmp_path / "rows.json"
    with pytest.raises(InputError, match=r"nothing to measure\. litgpt: fetch it$"):
        train_command.train_command(n_future=[1], contenders=["litgpt"])
    train_command.train_command(
        n_future=[2], vocab_size=[16], contenders=["ours", "huggingface"], dim=32, n_layers=3, n_heads=2, ffn_dim=48,
        context=8, batch=2, rounds=1, memory=False, overhead=False,
    )  # fmt: skip
    assert "huggingface is left out: it predicts one token, and n_future is [2]" in capsys.readouterr().err
    train_command.train_command(
        n_future=[1, 2], vocab_size=[16], contenders=["ours", "litgpt"], dim=32, n_layers=3, n_heads=2, ffn_dim=48,
        context=8, batch=2, rounds=1, memory=False, overhead=False, json=str(file),
    )  # fmt: skip
    captured = capsys.readouterr()
    assert "litgpt is left out: fetch it" in captured.err
    assert "Training steps: V = 16" in captured.out
    content = json.loads(file.read_text())
    assert [(r["contender"], r["n_future"]) for r in content["rows"]] == [("ours", 1), ("ours", 2)]
    assert content["machine"]["threads"] == 1
    assert content["judged_by"] == "CPU time"


def test_ours_is_measured_with_layers_recomputed_too() -> None:
    rows = arms(["ours", "naive"], [2], (False,), ["layers", "every=2"])
    assert [(row.contender, row.recompute) for row in rows] == [
        ("ours", "none"), ("ours", "layers"), ("ours", "every=2"), ("naive", "none")
    ]  # fmt: skip
    model = make_step(rows[2], tiny_workload())[0].model
    assert [block.recomputed for block in model.blocks()][:2] == ["layer", "none"]  # type: ignore[operator]
    kept, again = (
        {"contender": "ours", "n_future": 2, "compiled": False, "recompute": recompute, "vocab_size": 8,
         "seconds": [1 / rate], "flops_per_token": 1, "peak_bytes": size}
        for recompute, rate, size in (("none", 12.0, 10), ("layers", 10.0, 4))
    )  # fmt: skip
    found = ratios([kept, again])[1]
    assert (found["time_over_kept"], found["memory_over_kept"]) == (pytest.approx(1.2), 0.4)


def test_what_cannot_be_recomputed_is_refused() -> None:
    for wrong in ("layer", "every=0", "every=x", "all=2"):
        with pytest.raises(InputError, match="recompute is"):
            train_command.train_command(recompute=[wrong])
