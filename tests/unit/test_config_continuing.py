"""A run that goes on under another length equals the run that had this length from the start, or is refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import fit, fit_until, make_folder
from tiny import tiny_backbone

from mtp_lightning.config.run.continuing import check_length, is_finished
from mtp_lightning.errors import InputError
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.module import MTPModule
from mtp_lightning.objective.weights import LossConfig, WeightsConfig
from mtp_lightning.optimization.schedule import ScheduleConfig
from mtp_lightning.tracking.read import history, read_run
from mtp_lightning.tracking.store import default_tracking_uri

pytestmark = pytest.mark.filterwarnings("ignore:.*the last steps are not validated")

CONSTANT = ("--model.schedule.kind=constant",)
WSD = ("--model.schedule.kind=wsd", "--model.schedule.decay_steps=4")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["mtp"])
    make_folder(tmp_path)
    return tmp_path


def last_checkpoint(run: str) -> dict[str, Any]:
    path = max(Path(run, "checkpoints").glob("*.ckpt"))
    return torch.load(path, weights_only=True)  # type: ignore[no-any-return]


def recorded(folder: Path, run: str) -> dict[str, list[tuple[int, float]]]:
    uri, run_id = default_tracking_uri(folder / "runs"), Path(run, "mlflow_run_id").read_text().strip()
    keys = [k for k in read_run(uri, run_id).metrics if k.startswith(("train/", "val/"))] + ["perf/tokens_seen"]
    return history(uri, run_id, keys)


def assert_equal(a: Any, b: Any, at: str = "") -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys(), at
        for key in a:
            assert_equal(a[key], b[key], f"{at}/{key}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), at
    elif isinstance(a, list):
        assert len(a) == len(b), at
        for i, (x, y) in enumerate(zip(a, b)):
            assert_equal(x, y, f"{at}[{i}]")
    else:
        assert a == b, at


@pytest.mark.parametrize(
    ("flags", "first", "total", "stopped"),
    [
        (CONSTANT, 6, 11, False),  # its last step ended in a validation
        ((*CONSTANT, "--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=6"), 5, 9, False),
        (WSD, 8, 12, True),  # stopped at step 4, before the decay of the last 4 steps
    ],
    ids=["constant", "constant, accumulated", "wsd"],
)
def test_a_run_for_more_steps_equals_the_longer_run(
    folder: Path, flags: tuple[str, ...], first: int, total: int, stopped: bool
) -> None:
    """Bit for bit: weights, optimizer, schedule, Lightning's loops; losses, rates and validations in MLflow."""
    assert fit("runs/whole", *flags, f"--trainer.max_steps={total}") == 0
    if stopped:
        fit_until("runs/parts", 4, *flags, f"--trainer.max_steps={first}")
    else:
        assert fit("runs/parts", *flags, f"--trainer.max_steps={first}") == 0
        assert is_finished(last_checkpoint("runs/parts"))
    assert fit("runs/parts", *flags, f"--trainer.max_steps={total}", "--ckpt_path=auto") == 0
    whole, parts = last_checkpoint("runs/whole"), last_checkpoint("runs/parts")
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "loops", "global_step", "epoch"):
        assert_equal(whole[part], parts[part], part)
    theirs = recorded(folder, "runs/whole")
    assert [step for step, _ in theirs["train/loss"]] == list(range(1, total + 1))
    assert [step for step, _ in theirs["val/loss"]] == list(range(3, total + 1, 3))
    assert recorded(folder, "runs/parts") == theirs
    run_id = Path("runs/parts/mlflow_run_id").read_text().strip()
    record = read_run(default_tracking_uri(folder / "runs"), run_id)
    assert (record.params["trainer.max_steps"], record.tags["mtp.max_steps"]) == (str(first), str(total))


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--model.optimizer.lr=0.5", "trained with model.optimizer.lr = 0.003, and this configuration says 0.5"),
        ("--model.loss.z_loss=0.1", "model.loss.z_loss = 0.0, and this configuration says 0.1"),
        ("--model.loss.weights.lam=0.5", "model.loss.weights.lam = None, and this configuration says 0.5"),
        ("--trainer.accumulate_grad_batches=3", "trainer.accumulate_grad_batches = 1, and this configuration says 3"),
        ("--trainer.gradient_clip_val=0.1", "trainer.gradient_clip_val = 1.0, and this configuration says 0.1"),
        (
            "--trainer.gradient_clip_algorithm=value",
            "gradient_clip_algorithm = 'norm', and this configuration says 'value'",
        ),
    ],
)
def test_a_run_goes_on_under_its_settings_in_whatever_folder(
    folder: Path, flag: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fit_until("runs/mine", 2)
    found = max(Path("runs/mine/checkpoints").glob("*.ckpt"))
    start = f"--ckpt_path={found}"
    assert fit("runs/other", flag, start) == 2
    assert says in capsys.readouterr().err
    assert not Path("runs/other").exists()
    assert fit("runs/other", "--model.loss.chunk_rows=16", start) == 0, "how a loss is computed is nobody's matter"


def content(step: int, total: int, schedule: ScheduleConfig, finished: bool = False) -> dict[str, Any]:
    progress = {"epoch_progress": {"current": {"completed": int(finished)}}}
    described = {"schedule": vars(schedule), "max_steps": total}
    return {"global_step": step, "loops": {"fit_loop": progress}, "mtp_lightning": described}


def module(schedule: ScheduleConfig) -> MTPModule:
    return MTPModule(tiny_backbone(n_layers=3), schedule=schedule)


COSINE = ScheduleConfig(warmup_steps=2)
STABLE = ScheduleConfig(kind="wsd", warmup_steps=2, decay_steps=4)
FLAT = ScheduleConfig(kind="constant", warmup_steps=2)


@pytest.mark.parametrize(
    ("before", "step", "total", "now", "new_total", "says"),
    [
        (COSINE, 10, 10, COSINE, 20, r"rates depend on its length \(model.schedule.kind: cosine\).*model.init"),
        (COSINE, 5, 10, COSINE, 8, "that of step 4 would have been another"),
        (COSINE, 10, 10, COSINE, 9, "has made 10 steps already: give 10 or more"),
        (FLAT, 10, 10, FLAT, 9, "has made 10 steps already"),
        (STABLE, 7, 10, STABLE, 20, r"had begun to fall by step 7 .*that of step 7 would have been another"),
        (STABLE, 6, 20, STABLE, 9, r"that of step 6 would have been another"),
        (FLAT, 10, 10, COSINE, 10, "kind: cosine.* was trained with kind: constant"),
    ],
)  # fmt: skip
def test_lengths_that_steps_would_not_have_had_are_refused(
    before: ScheduleConfig, step: int, total: int, now: ScheduleConfig, new_total: int, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        check_length(Path("x.ckpt"), content(step, total, before), module(now), new_total)


@pytest.mark.parametrize(
    ("before", "step", "total", "now", "new_total"),
    [
        (COSINE, 5, 10, COSINE, 10),
        (COSINE, 2, 10, COSINE, 20),  # inside the warm-up and its first step, which do not depend on the length
        (FLAT, 10, 10, FLAT, 20),
        (FLAT, 5, 10, FLAT, 6),
        (STABLE, 6, 10, STABLE, 20),
        (STABLE, 6, 20, STABLE, 10),
        (FLAT, 10, 10, STABLE, 14),
    ],
)
def test_lengths_that_make_no_difference_so_far_are_fine(
    before: ScheduleConfig, step: int, total: int, now: ScheduleConfig, new_total: int
) -> None:
    check_length(Path("x.ckpt"), content(step, total, before), module(now), new_total)


def test_weights_of_losses_that_move_with_the_length_are_looked_at_too() -> None:
    loss = LossConfig(weights=WeightsConfig(schedule="anneal"))
    moving = MTPModule(tiny_backbone(n_layers=3), HeadsConfig(n_future=2), loss=loss, schedule=FLAT)
    with pytest.raises(InputError, match=r"model\.loss\.weights\) move with its length"):
        check_length(Path("x.ckpt"), content(5, 10, FLAT), moving, 20)


def test_a_checkpoint_that_does_not_say_its_length_is_continued_as_it_was() -> None:
    old = content(10, 10, COSINE, finished=True)
    del old["mtp_lightning"]["schedule"], old["mtp_lightning"]["max_steps"]
    check_length(Path("x.ckpt"), old, module(COSINE), 10)
    with pytest.raises(InputError, match="of a run of 10 steps"):
        check_length(Path("x.ckpt"), old, module(COSINE), 20)


def test_a_run_goes_on_under_another_setting_of_what_cannot_change_it(folder: Path) -> None:
    """As a cell has to, whose signature is the same; `tracking.params.NON_SEMANTIC` has all such keys."""
    assert fit("runs/whole") == 0
    fit_until("runs/parts", 4)
    more = ("--model.recompute=layers", "--model.on_divergence=go_on", "--trainer.log_every_n_steps=2")
    data = ("--data.init_args.prepare_workers=2", "--data.init_args.num_workers=1", "--data.init_args.directory=other")
    assert fit("runs/parts", *more, *data, "--ckpt_path=auto") == 0
    assert_equal(last_checkpoint("runs/whole")["state_dict"], last_checkpoint("runs/parts")["state_dict"])
