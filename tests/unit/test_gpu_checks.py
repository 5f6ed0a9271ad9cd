"""The checks for a GPU can be run at all: the quick ones on a CPU, at tiny sizes."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

GPU = Path(__file__).parents[1] / "gpu" / "checks.py"


@pytest.fixture(scope="module")
def checks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_checks", GPU)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    "name",
    [
        "documents",
        "long_documents",
        "objectives",
        "fused_loss",
        "decoding",
        "checkpoint_stall",
    ],
)
def test_a_check_runs_on_a_cpu(name: str, checks: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert checks.main(["--device", "cpu", "--only", name]) == 0
    machine, line = lines(capsys)
    assert machine["machine"]
    assert (line["check"], line["ok"]) == (name, True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ways_to_decode", "training", "compiled", "strategies", "probes"])
def test_a_long_check_runs_on_a_cpu_by_the_script(name: str) -> None:
    """In a process without the tests' checks of shapes, which what is compiled cannot have."""
    words = ["bash", str(GPU.with_name("run.sh")), "--device", "cpu", "--only", name]
    done = subprocess.run(words, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True)
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["check"], last["ok"]) == (name, True), last
    assert done.returncode == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_every_check_says_why_it_is_left_out(
    checks: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert checks.main([]) == 0
    said = lines(capsys)
    assert [line["check"] for line in said] == list(checks.CHECKS)
    assert all(line["ok"] is None and "no CUDA device" in str(line["skipped"]) for line in said)


def test_a_check_that_fails_is_one_line_and_the_exit_status(
    checks: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(scale: object) -> dict[str, float]:
        raise AssertionError("off by 3")

    monkeypatch.setitem(checks.CHECKS, "documents", fails)
    assert checks.main(["--device", "cpu", "--only", "documents", "fused_loss"]) == 1
    _, first, second = lines(capsys)
    assert (first["ok"], first["error"], second["ok"]) == (False, "AssertionError: off by 3", True)
