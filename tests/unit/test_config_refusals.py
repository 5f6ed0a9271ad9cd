"""Whatever `mtp fit` refuses leaves a run's folder, and the store of MLflow runs, byte for byte as they were."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sampled import one_in
from small_runs import fit, fit_until, make_folder

EMPTY, FINISHED, STOPPED, ABSENT = "runs/empty", "runs/finished", "runs/stopped", "runs/absent"
STATES = (EMPTY, FINISHED, STOPPED, ABSENT)
AUTO = "--ckpt_path=auto"
NO_LOGGER = "--trainer.logger=false"
STOPPING = "lightning.pytorch.callbacks.EarlyStopping"
Snapshot = dict[str, tuple[int, int, bytes]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("refusals")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["mtp"])
        make_folder(folder)
        assert fit(FINISHED) == 0
        fit_until(STOPPED, 4)
        (folder / EMPTY).mkdir()
        (folder / "file").write_text("not a folder")
        (folder / "text.ckpt").write_text("not a checkpoint")
        torch.save({"weight": torch.zeros(2)}, folder / "weights.ckpt")
        (folder / "other").mkdir()
        for i in range(4):
            (folder / "other" / f"{i}.txt").write_text(f"other text, number {i}. " * 20)
        yield folder


def snapshot(folder: Path) -> Snapshot:
    """Every file and folder, with what a file holds and when it was written; prepared corpora are no part of a run."""
    found: Snapshot = {}
    for path in sorted(folder.rglob("*")):
        name, stat = path.relative_to(folder).as_posix(), path.stat()
        if not name.startswith("runs/data"):
            found[name] = (stat.st_ino, stat.st_mtime_ns, path.read_bytes()) if path.is_file() else (0, 0, b"")
    return found


def check(folder: Path, run: str, flags: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(folder)
    assert fit(run, *flags) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("mtp: error:") == 1
    assert "Traceback" not in error
    after = snapshot(folder)
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] != before[name]] == []


@pytest.mark.parametrize(
    ("flag", "says"),
    one_in(
        3,
        [
            ("--model.heads.n_futur=2", "no key 'model.heads.n_futur'"),
            ("--model.heads.n_future=many", "model.heads.n_future"),
            ("--model.heads.n_future=0", "model.heads.n_future is 0"),
            ("--model.backbone.n_heads=3", "model.backbone.dim is 16"),
            ("--model.optimizer.lr=-1", "model.optimizer.lr is -1.0"),
            ("--model.schedule.decay_ratio=2", "model.schedule.decay_ratio is 2:"),
            ("--model.schedule.warmup_steps=6", "the learning rate would never reach its peak"),
            ("--model.schedule.kind=wsd", "model.schedule.decay_steps is missing"),
            ("--model.schedule.decay_steps=2", "only 'wsd' has a decay of its own"),
            ("--model.loss.weights.values=[1,2,3]", "3 weights, and model.heads.n_future = 2"),
            ("--model.backbone.vocab_size=200", "model.backbone.vocab_size is 200"),
            ("--data.context=0", "data.context is 0"),
            ("--data.source.kind=nothing", "kind"),
            ("--data.validation_fraction=2", "data.validation_fraction is 2.0"),
            ("--trainer.callbacks.keep=0", "PeriodicCheckpoint.keep is 0"),
            ("--trainer.callbacks.kind=whole", "kind"),
            ("--model.recompute=layer", "model.recompute"),
            ("--model.recompute={every: 0}", "model.recompute is {'every': 0}: it has to be 'none' or 'layers'"),
            ("--model.recompute={only: 2}", "model.recompute is {'only': 2}"),
            ("--model.recompute={every: 40}", "model.recompute.every is 40: the model has"),
            ("--trainer.logger.tracking_uri=./mlruns", "tracking_uri is './mlruns'"),
            ("--trainer.log_every_n_steps=0", "trainer.log_every_n_steps is 0"),
            ("--trainer.accumulate_grad_batches=2", "give a multiple"),
            ("--trainer.fast_dev_run=true", "trainer.fast_dev_run is True"),
            ("--trainer.strategy=deepspeed", "trainer.strategy is 'deepspeed'"),
            ("--trainer.limit_val_batches=1.5", "limit_val_batches"),
            ("--trainer.num_nodes=0", "num_nodes"),
            ("--trainer.gradient_clip_val=-1", "trainer.gradient_clip_val is -1"),
            ("--trainer.limit_train_batches=0", "trainer.limit_train_batches is 0"),
            ("--trainer.max_epochs=0", "trainer.max_epochs is 0"),
            ("--trainer.devices=0", "trainer.devices is 0"),
            ("--trainer.accelerator=mps", "trainer.accelerator is mps"),
            ("--trainer.profiler=simpel", "trainer.profiler is simpel"),
            ("--trainer.precision=transformer-engine", "trainer.precision is transformer-engine"),
            ("--trainer.strategy=dpp", "trainer.strategy is dpp"),
            ("--trainer=null", "trainer is empty"),
            ("--seed_everything=-1", "seed_everything is -1"),
            ("--seed_everything=true", "seed_everything is True"),
            ("--model.optimizer.eps=0", "model.optimizer.eps is 0.0: it has to be at least 1e-30"),
            ("--model.schedule=5", "model.schedule is 5"),
            ("--data.source=[1]", "data.source is [1]: it has to be keys with their values"),
            (
                "--data.mixture=[{source: 1, weight: {0: 1}}]",
                "data.init_args.mixture[0].source is 1: it has to",
            ),
            ("--data.mixture=[{weight: 1}, {source: {kind: null}}]", "data.init_args.mixture[1].source.kind is null"),
            ("--trainer.max_steps=null", "trainer.max_steps is null"),
            (f"--model.backbone.dim={10**400}", "model.backbone.dim is 1000"),
            ("--model.loss.z_loss=.nan", "model.loss.z_loss is nan"),
            ("--model.loss.weights.lam={0.0: .inf}", "model.loss.weights.lam is {0.0: inf}"),
            ("--model.backbone.n_layers=1000000000", "model.backbone.n_layers is 1000000000"),
            ("--model.backbone.dim=8388608", "the run needs about"),
            ("--data.batch_size=1000000000", "data.batch_size 1,000,000,000"),
            ("--data.tokenizer=null", "data.tokenizer: there is no file 'null'"),
            ("--trainer.callbacks.every_n_seconds=.nan", "PeriodicCheckpoint.every_n_seconds is nan"),
            ("--trainer.logger.experiment=mtp/../../x", "trainer.logger.init_args.experiment is 'mtp/../../x'"),
            (f"--trainer.callbacks=[{{class_path: {STOPPING}}}]", "callbacks.monitor is missing"),
            (
                f"--trainer.callbacks=[{{class_path: {STOPPING}, init_args: {{monitor: a}}}}]",
                "trainer.callbacks has lightning.pytorch.callbacks.EarlyStopping: it would end the run before its last",
            ),
            (
                "--trainer.callbacks=[{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {monitor: a,"
                " mode: b}}]",
                "`mode` can be min, max",
            ),
            ("--trainer.limit_val_batches=1.0e-9", "trainer.limit_val_batches is 1e-09"),
        ],
    ),
)
def test_what_a_configuration_alone_says(
    folder: Path, flag: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found out without a look at the run's folder, so one kind of folder will do: the one with the most to lose."""
    check(folder, FINISHED, (AUTO, flag), says, capsys)


@pytest.mark.parametrize("run", STATES)
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--ckpt_path=nothing.ckpt",), "ckpt_path: there is no checkpoint file 'nothing.ckpt'"),
        (("--ckpt_path=text.ckpt",), "'text.ckpt' is not a checkpoint"),
        (("--ckpt_path=weights.ckpt",), "'weights.ckpt' is not a checkpoint of `mtp fit`"),
        ((AUTO, NO_LOGGER, "--data.source.path=nowhere"), "there is no file or folder 'nowhere'"),
        ((AUTO, NO_LOGGER, "--data.context=100000"), "data.context = 100000"),
        ((AUTO, NO_LOGGER, "--trainer.val_check_interval=0.5"), "trainer.val_check_interval is 0.5"),
        ((AUTO, "--trainer.max_steps=-1"), "trainer.max_steps is -1"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_what_is_refused_in_any_folder(
    folder: Path, run: str, flags: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check(folder, run, flags, says, capsys)


@pytest.mark.parametrize("run", [FINISHED, STOPPED])
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((), "already holds a run"),
        ((AUTO, "--trainer.max_steps=12"), "learning rates depend on its length"),
        ((AUTO, "--trainer.max_steps=3"), "steps already: give"),
        ((AUTO, "--model.optimizer.lr=0.1"), "was trained with model.optimizer.lr = 0.003"),
        ((AUTO, "--data.val_windows=2"), "was begun with 4"),
        ((AUTO, "--trainer.logger.tracking_uri=sqlite:///elsewhere/mlflow.db"), "does not hold the run of"),
        ((AUTO, NO_LOGGER, "--model.backbone.ffn_dim=48"), "was made with model.backbone.ffn_dim = 32"),
        ((AUTO, NO_LOGGER, "--model.backbone.rope_theta=1e6"), "was made with model.backbone.rope_theta = 10000.0"),
        (
            (AUTO, NO_LOGGER, '--model.backbone.rope_scaling={"kind": "linear", "factor": 4}'),
            "was made with model.backbone.rope_scaling",
        ),
        ((AUTO, NO_LOGGER, "--data.source.path=other"), "was trained on other text"),
        ((AUTO, NO_LOGGER, "--data.batch_size=4"), "was trained with data.batch_size = 2"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) and value else "",
)
def test_what_is_refused_where_a_run_lies(
    folder: Path, run: str, flags: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check(folder, run, flags, says, capsys)


@pytest.mark.parametrize("run", [EMPTY, ABSENT])
def test_a_store_that_cannot_be_made(folder: Path, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    uri = "--trainer.logger.tracking_uri=sqlite:////proc/runs/mlflow.db"
    check(folder, run, (uri,), "tracking_uri: '/proc/runs' cannot be written to", capsys)


@pytest.mark.parametrize("run", [EMPTY, ABSENT])
def test_a_probe_without_room_in_the_data(folder: Path, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Found out in `on_fit_start`, the last of the hooks that may refuse."""
    probe = ("--trainer.callbacks+=callbacks.decoding.DecodingProbe", "--trainer.callbacks.prompt_tokens=100000")
    check(folder, run, probe, "100000", capsys)


@pytest.mark.parametrize("run", [EMPTY, ABSENT])
def test_a_loader_that_knows_no_steps(folder: Path, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Found out when the loader has been made, before anything is written."""
    flags = ("--data.class_path=small_runs.WithoutSteps", "--trainer.accumulate_grad_batches=3")
    check(folder, run, flags, "has to return what its training_loader makes", capsys)


def test_slurm_did_not_start_a_task_for_each_process(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a batch script without srun: Lightning would train in one process."""
    for key, value in {"NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_NAME": "mine"}.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    check(folder, ABSENT, ("--trainer.devices=2",), "make 2 processes, and this Slurm job has SLURM_NTASKS=1", capsys)


@pytest.mark.parametrize("run", ["/proc/runs", "file", "file/run"])
def test_folders_that_cannot_be_made(folder: Path, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    check(folder, run, (), f"trainer.default_root_dir: '{run}' cannot be written to", capsys)


def test_a_run_that_is_not_refused_does_write(folder: Path) -> None:
    """Or the tests above would see nothing."""
    before = snapshot(folder)
    assert fit("runs/third") == 0
    after = snapshot(folder)
    assert {"config.yaml", "mlflow_run_id", "progress.json", "result.json", "checkpoints"} == {
        path.name for path in (folder / "runs/third").iterdir()
    }
    assert after["runs/mlflow.db"] != before["runs/mlflow.db"]
