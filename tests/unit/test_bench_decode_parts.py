"""`mtp bench decode`: where the time goes, the peer llama.cpp, results as they come."""

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from mtp_lightning.bench import harness
from mtp_lightning.bench.decode import decode_llama_cpp_peer as peer
from mtp_lightning.bench.decode import decode_parts
from mtp_lightning.bench.decode.decode_contenders import clock_for
from mtp_lightning.bench.decode.decode_measure import bench_decode
from mtp_lightning.bench.decode.decode_parts import PARTS, decoding_parts, parts_table
from mtp_lightning.bench.harness import shown_progress
from mtp_lightning.decoding.compiled.compiler import COMPILERS, shutil
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.reference import decode_plainly
from mtp_lightning.model.mtp import MTPModel

MakeModel = Callable[..., MTPModel]
CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="needs a C++ compiler")


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiler)])
def test_the_parts_of_a_step_are_all_of_it(
    compiled: bool, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_parts, "read_bandwidth", lambda nbytes, clock: 1e9)
    monkeypatch.setattr(decode_parts, "STEPS", 4)
    engine = Engine(make_model(3), compiled=compiled)
    found = decoding_parts(engine, 3, [torch.arange(6)], clock_for(CPU, 1))
    assert sum(found[part] for part in PARTS) == pytest.approx(1.0, abs=0.25), "two clocks, of one thread each"
    assert all(found[part] > 0 for part in PARTS if part != "python")
    assert found["reading"] == pytest.approx(engine.forward_bytes(3, 1, 8) / 1e9 * 1e3)
    (row,) = parts_table([{"model": "m", "batch": 1, "heads_used": 3, **found}], "here").rows
    assert row is not None


def test_an_operation_is_counted_once() -> None:
    """What choosing runs is sampling's; a map in it is no map."""
    choosing = SimpleNamespace(name="choosing", cpu_parent=None)
    names = {
        "aten::mm": "maps", "mkldnn::_linear_pointwise": "maps", "aten::add": "small",
        "aten::_scaled_dot_product_flash_attention_for_cpu": "attention", "steps": None,
    }  # fmt: skip
    for name, part in names.items():
        assert decode_parts._part(SimpleNamespace(name=name, cpu_parent=None)) == part
        assert decode_parts._part(SimpleNamespace(name=name, cpu_parent=choosing)) is None
    assert decode_parts._part(choosing) == "sampling"


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


def _plain(model: MTPModel) -> Callable[..., object]:
    from mtp_lightning.bench.decode.decode_contenders import Run

    return lambda prompts: Run([decode_plainly(model, prompt, 6) for prompt in prompts], 1.0)


def test_a_peer_that_cannot_be_measured_says_why(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install llama-cpp-python" in peer.why_not(make_model(2), torch.float32)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name != "gguf" or None)
    assert "pip install gguf" in peer.why_not(make_model(2), torch.float32)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    assert "float32" in peer.why_not(make_model(2), torch.bfloat16)
    assert "qk_norm" in peer.why_not(make_model(2, qk_norm=True), torch.float32)
    assert peer.why_not(make_model(2), torch.float32) == ""


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
