"""Bad input: one clear message that names key and remedy, exit status 2, and nothing written."""

import errno
import os
from pathlib import Path

import pytest
import torch

from mtp_lightning.cli import COMMANDS, load, main
from mtp_lightning.config.config_files import find_config
from mtp_lightning.config.keys.command_parser import command_parser, joined
from mtp_lightning.config.lightning_cli import MTPCLI
from mtp_lightning.errors import InputError

BASE = ["-c", "conf/base.yaml", "-c", "conf/model/tiny.yaml", "-c", "conf/data/python_stdlib.yaml"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["mtp"])
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--model.heads.n_futur", "2"], "no key 'model.heads.n_futur'; did you mean 'model.heads.n_future'?"),
        (["--data.contxt", "5"], "did you mean 'data.context'?"),
        (["--trainer.max_step", "5"], "did you mean 'trainer.max_steps'?"),
        (["--model.heads.n_future", "0"], "model.heads.n_future is 0: it has to be at least 1"),
        (["--model.heads.n_future", "8"], "leave the trunk none"),
        (["--model.heads.n_future", "many"], "model.heads.n_future"),
        (["--model.optimizer.lr", "-1"], "model.optimizer.lr is -1.0"),
        (["--model.schedule.decay_ratio", "2"], "model.schedule.decay_ratio is 2"),
        (["--model.loss.weights.values", "[1, 2]"], "2 weights, and model.heads.n_future = 1"),
        (["--trainer.max_steps", "500"], "model.schedule.warmup_steps is 1000 and trainer.max_steps is 500"),
        (["--trainer.max_steps", "1500", "--trainer.val_check_interval", "2000"], "the run would never validate"),
        (["--trainer.accumulate_grad_batches", "3"], "give a multiple"),
        (["--trainer.log_every_n_steps", "0"], "trainer.log_every_n_steps is 0"),
        (["--model.optimizer.weight_decay", "-1"], "model.optimizer.weight_decay is -1.0"),
        (["--model.backbone.n_heads", "3"], "model.backbone.dim is 128"),
        (["--trainer.devices", "0"], "trainer.devices is 0: "),
        (["--trainer.accelerator", "gppu"], "trainer.accelerator is gppu: "),
        (["--trainer.limit_val_batches", "1.5"], "trainer.limit_val_batches is 1.5: "),
        (["--trainer.num_nodes", "0"], "trainer.num_nodes is 0: "),
        (["--trainer.profiler", "simpl"], "trainer.profiler is simpl: "),
        (["--trainer.max_time", "soon"], "trainer.max_time is soon: "),
        (["--trainer.val_check_interval", "0.5"], "trainer.val_check_interval is 0.5: a run is one epoch"),
        (["--trainer.fast_dev_run", "true"], "trainer.fast_dev_run is True: "),
        (["--trainer", "null"], "trainer is empty: give keys below it"),
        (["--data.init_args.seed", "3"], "data.init_args.seed is 3, and follows from seed_everything"),
        (["--data.vocab_size", "300"], "follows from model.backbone.vocab_size"),
        (["--model.heads.n_future", "many"], "model.heads.n_future is many: it has to be a whole number (on the"),
        (["-c", "conf/model/tny.yaml"], "did you mean 'conf/model/tiny.yaml'?"),
        (["-c", "x" * 300], "is not there"),
        (["--trainer.default_root_dir", "/proc/runs"], "trainer.default_root_dir: '/proc/runs' cannot be written to"),
    ],
)
def test_fit_refuses(flags: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["fit", *BASE, *flags]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_the_message_names_the_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model:\n  headz:\n    n_future: 2\n")
    assert main(["fit", *BASE, "-c", "mine.yaml"]) == 2
    error = capsys.readouterr().err
    assert "no key 'model.headz'; did you mean 'model.heads'? (in mine.yaml:2)" in error


def test_an_interpolation_into_nothing_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model:\n  optimizer:\n    lr: ${vars.lr}\n")
    assert main(["fit", *BASE, "-c", "mine.yaml"]) == 2
    assert "Interpolation key 'vars.lr' not found" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["grd"], "no command 'mtp grd'"),
        (["grid", "rnu"], "did you mean 'grid run'?"),
        (["generate", "nothing.ckpt", "--prompt", "x"], "checkpoint 'nothing.ckpt' is not a file"),
        (["generate", "text.ckpt", "--prompt", "x"], "'text.ckpt' is not a checkpoint, or a truncated or damaged one"),
        (["generate", "weights.ckpt", "--prompt", "x"], "is not a checkpoint of `mtp fit`"),
        (["generate", "empty", "--prompt", "x"], "folder 'empty' holds no checkpoint"),
        (["bench", "loss", "--dtype", "fp8"], "dtype is 'fp8'"),
        (["bench", "loss", "--rounds", "many"], "mtp bench loss"),
        (["grid", "plan", "nothing.yaml"], "nothing.yaml"),
        (["ui", "--prot", "80"], "did you mean '--port'?"),
        (["generate", "x", "--max_new_token", "4"], "did you mean '--max_new_tokens'?"),
        (["ui"], "no runs are recorded in"),
    ],
)
def test_other_commands_refuse(args: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.ckpt")
    (tmp_path / "empty").mkdir()
    assert main(args) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error


def test_files_of_experiments_are_found_from_any_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["grid", "plan", "experiments/001_head_count/grid.yaml"]) == 0
    assert "to run" in capsys.readouterr().out
    (tmp_path / "experiments/001_head_count").mkdir(parents=True)
    (tmp_path / "experiments/001_head_count/grid.yaml").write_text("my: own")
    assert main(["grid", "plan", "experiments/001_head_count/grid.yaml"]) == 2, "what lies here comes first"
    assert find_config("experiments/005_induction/probe.yaml").is_file()
    with pytest.raises(InputError, match=r"did you mean 'experiments/005_induction/probe\.yaml'"):
        find_config("experiments/005_induction/prob.yaml")


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(InputError):
        main(["--debug", "grd"])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there(name: str) -> None:
    assert callable(load(COMMANDS[name][0]))


@pytest.mark.parametrize("args", [[], ["--help"], ["grid"], ["--version"]])
def test_help_is_no_error(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 0
    assert "mtp" in capsys.readouterr().out


def test_parsing_alone_makes_no_objects_and_leaves_random_state() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    cli = MTPCLI(BASE, parse_only=True)
    assert not hasattr(cli, "trainer")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("number", "status"), [(errno.ENOSPC, 1), (errno.EACCES, 1), (errno.ENAMETOOLONG, 2)])
def test_what_the_system_refuses_is_said_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, status: int
) -> None:
    def full(args: list[str]) -> int:
        raise OSError(number, os.strerror(number), "runs/fit/x.ckpt")

    monkeypatch.setattr("mtp_lightning.config.commands.fit", full)
    assert main(["fit", *BASE]) == status
    assert f"{os.strerror(number)}: runs/fit/x.ckpt" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args",
    [
        ["export", "runs/one", "n.safetensors"], ["export", "runs/one", "n", "--to", "hf"],
        ["import", "n", "o.safetensors"], ["mix", "runs/one", "--out", "n.safetensors"], ["data", "prepare", "n"],
        ["data", "sample", "runs/one", "--prompts", "p", "--out", "n"], ["generate", "n", "--prompt", "a"],
        ["fit", *BASE, "--trainer.default_root_dir", "n"], ["validate", "n"], ["grid", "plan", "n.yaml"],
    ],
)  # fmt: skip
def test_a_name_that_is_too_long_is_bad_input(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{'n' * 300}{arg[1:]}" if arg[:1] == "n" else arg for arg in args]) == 2
    said = capsys.readouterr().err
    assert said.count("mtp: error: ") == 1
    assert "nnnnnnnn" in said


@pytest.mark.parametrize("text", ["# Sort a list", "---", "~", "null", "&a", "", '"quoted"', "{a: 1}", "--prompt"])
def test_a_text_option_is_text_as_typed(text: str) -> None:
    parser = command_parser(load(COMMANDS["generate"][0]), "mtp generate")
    assert parser.parse_args(joined(["x.ckpt", f"--prompt={text}", "--show-drafts"], parser)).prompt == text
    if text != "--prompt":
        parsed = parser.parse_args(joined(["x.ckpt", "--prompt", text, "--show_drafts", "--top-k", "3"], parser))
        assert (parsed.prompt, parsed.show_drafts, parsed.top_k, parsed.json) == (text, True, 3, None)
