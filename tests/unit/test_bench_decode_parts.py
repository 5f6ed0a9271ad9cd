"""`mtp bench decode`: where the time goes, the peer llama.cpp, results as they come."""

import importlib.util
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compiling import needs_compiler
from rich.console import Console
from torch import Tensor

from mtp_lightning.bench import harness
from mtp_lightning.bench.decode import decode_llama_cpp_peer as peer
from mtp_lightning.bench.decode import decode_measure, decode_parts
from mtp_lightning.bench.decode.decode_contenders import clock_for
from mtp_lightning.bench.decode.decode_measure import bench_decode
from mtp_lightning.bench.decode.decode_parts import PARTS, decoding_parts, parts_table, step_parts, step_products
from mtp_lightning.bench.harness import shown_progress
from mtp_lightning.decoding.choosing import Chooser
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.reference import decode_plainly
from mtp_lightning.model.mtp import MTPModel

MakeModel = Callable[..., MTPModel]
CPU = torch.device("cpu")


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiler)])
def test_the_parts_of_a_step_are_all_of_it(
    compiled: bool, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is measured twice, or not at all, is missing from the sum, or too much there."""
    monkeypatch.setattr(decode_parts, "read_bandwidth", lambda nbytes, clock: 1e9)
    monkeypatch.setattr(decode_parts, "product_peak", lambda device, dtype, clock: 1e9)
    model = make_model(3, dim=256, ffn_dim=1024)
    found = decoding_parts(model, 3, torch.float32, compiled, [torch.arange(6)], clock_for(CPU, 1))
    assert sum(found[part] for part in PARTS) == found["sum"] == pytest.approx(1.0, abs=0.3)
    assert all(found[part] > 0 for part in PARTS if part != "python")
    assert abs(found["python"]) < 0.5
    read = Engine(model, 3, compiled=compiled).forward_bytes(3, 1, 6 + decode_parts.STEPS // 2)
    assert found["reading"] == pytest.approx(read / 1e9 * 1e3)
    (row,) = parts_table([{"model": "m", "batch": 1, "heads_used": 3, **found}], "here").rows
    assert row is not None


def test_python_is_what_is_left_of_a_step_that_is_known() -> None:
    """A step of 4 ms of Python, 2 ms of choosing and 500 little operations, each of which costs more to look at
    than to run."""
    clock, x = time.process_time, torch.zeros(8)

    def spin(seconds: float) -> None:
        end = clock() + seconds
        while clock() < end:
            pass

    class Slow(Chooser):
        def draft(self, *_: Any) -> Tensor:
            spin(0.002)
            return x + 1

    def begin(chooser: Any) -> Callable[[], object]:
        def step() -> None:
            spin(0.004)
            for _ in range(500):
                x.add_(1)
            chooser.draft()

        return step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Chooser, "draft", Slow.draft)
        found = step_parts(begin, clock)
    assert found["python"] == pytest.approx(0.004, rel=0.1)
    assert found["sampling"] == pytest.approx(0.002, rel=0.1)
    assert (found["maps"], found["attention"]) == (0, 0)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiler)])
def test_products_are_counted_by_hand(compiled: bool, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two for every weight of the path and row, whatever the precision; at k = 3 a block of three rows, two further
    heads, whose queries, outputs and SwiGLUs run at one position, and two rows more of logits."""
    model = make_model(3)
    heads = [sum(p.numel() for p in head.parameters() if p.ndim == 2) for head in model.heads]
    path = sum(p.numel() for p in model.trunk.parameters() if p.ndim == 2) + heads[0]
    unembedding, prompt = model.unembedding.weight.numel(), [torch.arange(6)]
    assert step_products(model, 1, prompt) == 2 * (path + unembedding)
    least = 2 * (3 * (path + unembedding) + sum(heads[1:]) + 2 * unembedding)
    keys = 2 * 2 * 2 * 32 * 32  # of two positions more in each of two heads
    assert least <= step_products(model, 3, prompt) <= least + 2 * keys
    monkeypatch.setattr(decode_parts, "read_bandwidth", lambda nbytes, clock: 1e9)
    monkeypatch.setattr(decode_parts, "product_peak", lambda device, dtype, clock: 1e9)
    found = decoding_parts(model, 1, torch.bfloat16, compiled, prompt, clock_for(CPU, 1))
    assert found["products"] == pytest.approx(2 * (path + unembedding) / 1e9 * 1e3)


@needs_compiler
def test_compiled_layers_are_measured_beside_torchs(make_model: MakeModel) -> None:
    reported: list[list[str]] = []
    rows, _ = bench_decode(
        "it", make_model(2), [torch.arange(6)] * 2, [1, 2], [1, 2], 6, 1, torch.float32, clock_for(CPU, 1),
        lambda: None, lambda text: None, {"llama_cpp": _plain(make_model(2))}, True,
        lambda own: reported.append([row["arm"] for row in own]),
    )  # fmt: skip
    arms = ["plain", "k = 2", "k = auto", "torch", "huggingface", "huggingface n=1"]
    assert reported == [[*arms, "llama_cpp"], arms], "rows as soon as they are there; the peer at batch 1 alone"
    assert all(row["equal"] == row["texts"] for row in rows if "texts" in row)
    assert {"over_torch", "over_llama_cpp"} <= rows[0].keys()


@needs_compiler
def test_a_tie_is_one_of_the_lower_precision_of_two_arms(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled layers compute in float32 with weights in bfloat16; torch's compute in bfloat16."""
    asked: list[torch.dtype] = []
    monkeypatch.setattr(
        decode_measure, "exactness", lambda engine, *runs: asked.append(runs[-1]) or {"texts": 1, "equal": 1}
    )
    rows, _ = bench_decode(
        "it", make_model(2), [torch.arange(6)], [1], [1, 2], 6, 1, torch.bfloat16, clock_for(CPU, 1),
        lambda: None, lambda text: None, {}, True,
    )  # fmt: skip
    arms = [row["arm"] for row in rows if "texts" in row]
    assert arms == ["plain", "k = 2", "k = auto", "torch", "huggingface"]
    assert asked == [torch.float32] * 3 + [torch.bfloat16] * 2


def _plain(model: MTPModel) -> Callable[..., object]:
    from mtp_lightning.bench.decode.decode_contenders import Run

    return lambda prompts: Run([decode_plainly(model, prompt, 6) for prompt in prompts], 1.0)


def test_a_peer_that_cannot_be_measured_says_why(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    assert "pip install llama-cpp-python" in peer.why_not(make_model(2), torch.float32)
    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    reason = peer.why_not(make_model(2), torch.float32)
    assert reason == "the package that writes GGUF files is not installed: pip install gguf", "no flag of export"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    assert "float32" in peer.why_not(make_model(2), torch.bfloat16)
    assert "qk_norm" in peer.why_not(make_model(2, qk_norm=True), torch.float32)
    assert peer.why_not(make_model(2), torch.float32) == ""


def test_a_peer_whose_library_does_not_load_says_why(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama_cpp.py").write_text("raise RuntimeError('Failed to load shared library: libgomp.so.1')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    reason = peer.why_not(make_model(2), torch.float32)
    assert reason == "llama-cpp-python is installed and does not load: Failed to load shared library: libgomp.so.1"


def test_llama_cpp_decodes_text_by_text(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(2)

    class Fake:
        def __init__(self, file: Path, room: int, threads: int) -> None:
            assert (room, threads) == (9, 1)

        def __enter__(self) -> "Fake":
            return self

        def __exit__(self, *_: object) -> None: ...

        def continued(self, prompt: list[int], new_tokens: int) -> list[int]:
            return decode_plainly(model, torch.tensor(prompt), new_tokens)

    monkeypatch.setattr(peer.export_gguf, "write_gguf", lambda *_: None)
    monkeypatch.setattr(peer.llama_cpp_model, "LlamaCpp", Fake)
    prompts = [torch.arange(4), torch.arange(2)]
    with peer.llama_cpp(model, 5, 9, 1, clock_for(CPU, 1)) as decode:
        assert decode(prompts).texts == [decode_plainly(model, prompt, 5) for prompt in prompts]


def test_without_a_terminal_progress_is_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 0.0, 1.0, 11.0, 11.0])
    monkeypatch.setattr(harness, "time", SimpleNamespace(monotonic=lambda: next(times)))
    console = Console(file=io.StringIO(), width=80)
    with shown_progress(console) as say:
        for text in ("first", "too soon", "later"):
            say(text)
    assert console.file.getvalue() == "first\nlater\n"  # type: ignore[attr-defined]
