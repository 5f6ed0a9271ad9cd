"""Compiled layers against torch's: the same texts, whatever the heads, the batch and the way of choosing; the same bits
however many rows are computed together; and what happens where nothing can be compiled."""

import ctypes
import json
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from compiling import needs_compiler
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decoding import DRAFTING, random_model, steps_of
from tiny import KINDS, VARIANTS

from mtp_lightning.checkpoints.files import LoadedModel, save_safetensors
from mtp_lightning.cli import main
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer
from mtp_lightning.decoding.choosing import Sampling
from mtp_lightning.decoding.compiled import compiler, layers
from mtp_lightning.decoding.compiled.compiler import LONG, kernels, wanted
from mtp_lightning.decoding.compiled.layers import CompiledLinear, seconds
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.generate import generate
from mtp_lightning.decoding.measure import next_logits
from mtp_lightning.decoding.positions import PositionTables, Tree
from mtp_lightning.decoding.reference import decode_plainly
from mtp_lightning.model.config import HeadsConfig, RopeScaling

CPU = torch.device("cpu")
BACKBONES = {
    "grouped": {"n_heads": 4, "n_kv_heads": 2},
    "wide heads": {"head_dim": 24, "n_kv_heads": 1},
    "biased": {"attention_bias": "qkv"},
    "normed": {"qk_norm": True, "head_dim": 40},
    "yarn": {"rope_scaling": RopeScaling(kind="yarn", factor=4.0, original_context=16)},
    "odd widths": {"dim": 36, "ffn_dim": 41, "vocab_size": 19},
}
QUICK = ("parallel", "linear", "anticausal", "sequential", "leap", "replicated", "two layers a head", "none")
"""Every drafter, and every way to the logits."""


def slow(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.fixture
def lengths() -> tuple[int, ...]:
    return 1, 7, 3


@needs_compiler
@pytest.mark.parametrize("name", [name if name in QUICK else slow(name) for name in sorted(VARIANTS | DRAFTING)])
def test_every_kind_of_heads_writes_what_the_definition_says(name: str, lengths: tuple[int, ...]) -> None:
    model = random_model((VARIANTS | DRAFTING)[name], seed=1)
    engine, eager = (Engine(model, exact_drafts=True, compiled=how) for how in (True, False))
    prompts = [torch.randint(0, 16, (length,)) for length in lengths]
    expected = [decode_plainly(model, prompt, 10) for prompt in prompts]
    for k in {1, engine.heads_used}:
        outs = generate(engine, prompts, 10, k)
        assert [out.tokens for out in outs] == expected
        assert [steps_of(out) for out in outs] == [steps_of(out) for out in generate(eager, prompts, 10, k)]
    stop = expected[0][4]
    outs = generate(engine, prompts, 10, "auto", {stop})
    assert outs[0].tokens == expected[0][: expected[0].index(stop) + 1]


@needs_compiler
@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_has_the_logits_of_torchs_layers(name: str) -> None:
    model = random_model(HeadsConfig(n_future=3), 2, **BACKBONES[name])
    engine, eager = (Engine(model, exact_drafts=True, compiled=how) for how in (True, False))
    text = torch.randint(0, 16, (37,))
    torch.testing.assert_close(next_logits(engine, text), next_logits(eager, text), rtol=1e-4, atol=1e-4)
    outs = generate(engine, [text, text[:5]], 12)
    assert [steps_of(out) for out in outs] == [steps_of(out) for out in generate(eager, [text, text[:5]], 12)]


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "backbone", [{"n_heads": 4}, *BACKBONES.values(), {"head_dim": 64}], ids=["plain", *BACKBONES, "vectors"]
)
def test_a_row_has_the_same_bits_with_any_others(dtype: torch.dtype, backbone: dict[str, Any]) -> None:
    """So no draft can change a text, nor can the rest of a batch; near ties fall as they do without."""
    check_rows(dtype, backbone)


def check_rows(dtype: torch.dtype, backbone: dict[str, Any]) -> None:
    model = random_model(HeadsConfig(n_future=4), 3, **{"dim": 64, "ffn_dim": 96} | backbone)
    engine = Engine(model, dtype=dtype, compiled=True)
    text_BT = torch.randint(0, 16, (3, 50))
    tables = PositionTables(64, engine.config, torch.float32, CPU)

    def logits(blocks: list[int], rows: slice) -> torch.Tensor:
        """(B, T, V), the texts being read in blocks of these sizes."""
        cache, start, read = engine.key_values(3, 64).layers(rows), 0, []
        for size in blocks:
            new = tables.block([start] * (rows.stop - rows.start), Tree.chain(size))
            h_BMD, _ = engine.run(text_BT[rows, start : start + size], new, cache)
            read.append(engine.logits(h_BMD))
            start += size
        return torch.cat(read, dim=1)

    alone = torch.cat([logits([1] * 50, slice(row, row + 1)) for row in range(3)])
    for blocks in ([1] * 50, [40, *[1] * 10], [40, 3, 7], [40, 2, 2, 6], [41, 4, 5], [42, 8], [50]):
        assert torch.equal(logits(blocks, slice(0, 3)), alone), blocks
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(logits([40, 3, 7], slice(0, 3)), alone)
    finally:
        torch.set_num_threads(threads)


@needs_compiler
def test_rounded_weights_are_those_of_bfloat16() -> None:
    weight, x = torch.randn(21, 600), torch.randn(9, 600)
    expected = x.double() @ weight.bfloat16().double().T
    torch.testing.assert_close(CompiledLinear(weight, torch.bfloat16)(x).double(), expected, rtol=1e-4, atol=1e-4)
    expected = x.double() @ weight.double().T + 1
    out = CompiledLinear(weight, torch.float32, torch.ones(21))(x)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-4)


@needs_compiler
@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are of x86")
@pytest.mark.parametrize("flag", ["-mno-avx512f", "-mno-fma", "-mno-avx"])
def test_shorter_vectors_compute_the_same(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other processors are compiled for."""
    monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-mno-avx512f", flag))
    library = kernels.__wrapped__()
    assert library is not None
    assert library.mtp_panel() == (8 if flag == "-mno-avx" else 16)
    monkeypatch.setattr(layers, "kernels", lambda: library)
    test_rounded_weights_are_those_of_bfloat16()
    for backbone in ({"n_heads": 4}, {"head_dim": 64}, BACKBONES["wide heads"]):
        for dtype in (torch.float32, torch.bfloat16):
            check_rows(dtype, backbone)
    for name in BACKBONES:
        test_every_backbone_has_the_logits_of_torchs_layers(name)


@needs_compiler
@pytest.mark.parametrize("sampling", [Sampling(0.9, seed=3), Sampling(1.2, top_p=0.8, seed=4), Sampling()])
def test_samples_and_trees_are_those_of_torchs_layers(sampling: Sampling) -> None:
    model = random_model(VARIANTS["parallel"], seed=6)
    prompts = [torch.randint(0, 16, (length,)) for length in (4, 9)]
    eager, compiled = Engine(model), Engine(model, compiled=True)
    expected = [out.tokens for out in generate(eager, prompts, 16, 1, sampling=sampling)]
    for tree in (None, [2, 2]):
        outs = generate(compiled, prompts, 16, 3, sampling=sampling, tree=tree)
        assert [out.tokens for out in outs] == expected


@needs_compiler
@pytest.mark.parametrize(
    "name", [name if name == "parallel" else slow(name) for name in ("parallel", "sequential", "leap")]
)
def test_so_are_samples_accepted_by_ratio(name: str) -> None:
    """Of the same drafts, with the same noise; those texts depend on the drafts."""
    model = random_model(VARIANTS[name], seed=6)
    prompts = [torch.randint(0, 16, (length,)) for length in (4, 9)]
    eager, compiled = (Engine(model, exact_drafts=True, compiled=how) for how in (False, True))
    for sampling in (Sampling(0.9, seed=3, accept="ratio"), Sampling(1.2, top_p=0.8, seed=4, accept="ratio")):
        for k in (1, 3):
            outs = generate(compiled, prompts, 16, k, sampling=sampling)
            assert [steps_of(out) for out in outs] == [
                steps_of(out) for out in generate(eager, prompts, 16, k, sampling=sampling)
            ]


@needs_compiler
@pytest.mark.slow
@pytest.mark.usefixtures("shapes_unchecked")
@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(1, 8),
    seed=st.integers(0, 10_000),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9),
    new=st.integers(0, 14),
    stop=st.integers(0, 15),
    kv_heads=st.sampled_from([1, 2]),
)
def test_any_model_any_batch_compiled_continues_as_the_definition_says(
    kind: str, n: int, seed: int, lengths: list[int], new: int, stop: int, kv_heads: int
) -> None:
    model = random_model(HeadsConfig(n_future=n, kind=kind), seed, n_kv_heads=kv_heads)  # type: ignore[arg-type]
    engine = Engine(model, compiled=True)
    prompts = [torch.randint(0, 16, (length,)) for length in lengths]
    expected = [decode_plainly(model, prompt, new, {stop}) for prompt in prompts]
    for k in sorted({1, (engine.heads_used + 1) // 2, engine.heads_used}):
        assert [out.tokens for out in generate(engine, prompts, new, k, {stop})] == expected


@needs_compiler
def test_generate_writes_the_same_compiled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = random_model(HeadsConfig(n_future=3), 4, vocab_size=256)
    save_safetensors(LoadedModel(tmp_path, model, ByteTokenizer(), 7, 64, None), tmp_path / "m.safetensors")
    found = []
    for how in ("true", "false", "auto"):
        flags = ["--max_new_tokens", "12", "--compile", how, "--json", str(tmp_path / "out.json")]
        assert main(["generate", str(tmp_path / "m.safetensors"), "--prompt", "ab", *flags]) == 0
        found.append(json.loads((tmp_path / "out.json").read_text()))
    assert [out["compiled"] for out in found] == [True, False, False]
    assert found[0]["ids"] == found[1]["ids"] == found[2]["ids"]
    capsys.readouterr()


@needs_compiler
def test_the_parts_of_a_step_add_up() -> None:
    engine = Engine(random_model(HeadsConfig(n_future=2), 0), compiled=True)
    seconds(count=True)
    generate(engine, [torch.zeros(4, dtype=torch.long)], 8)
    maps, attention, small = seconds(count=False)
    assert min(maps, attention, small) > 0
    generate(engine, [torch.zeros(4, dtype=torch.long)], 8)
    assert seconds(count=False) == (0, 0, 0)


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No kernels yet, and a cache folder of its own."""
    monkeypatch.setattr(compiler, "kernels", compiler.functools.cache(kernels.__wrapped__))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return monkeypatch


def test_without_a_compiler_it_says_so_once_and_goes_on(
    fresh: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh.setattr(compiler, "COMPILERS", ("no-such-compiler",))
    fresh.setenv("CXX", "")
    assert not wanted(True, CPU, 1)
    assert not wanted("auto", CPU, LONG)
    model = random_model(HeadsConfig(n_future=2), 0)
    engine, prompt = Engine(model, compiled=True), torch.arange(3)
    assert not engine.compiled
    assert generate(engine, [prompt], 6)[0].tokens == decode_plainly(model, prompt, 6)
    said = capsys.readouterr().err
    assert said.count("warning: decoding goes on without compiled layers: there is no C++ compiler") == 1


def test_a_compiler_that_fails_is_reported_with_its_message(
    fresh: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\n[ $# = 1 ] || { echo 'no space left' >&2; exit 1; }\n")
    broken.chmod(0o700)
    fresh.setenv("CXX", str(broken))
    assert not wanted(True, CPU, 1)
    assert "no space left" in capsys.readouterr().err
    assert list((tmp_path / "cache" / "mtp_lightning" / "kernels").iterdir()) == []


@needs_compiler
def test_a_compiler_without_openmp_is_asked_again_without(tmp_path: Path) -> None:
    """As Apple's, which knows no `-fopenmp`."""
    apples = tmp_path / "clang++"
    apples.write_text(f'#!/bin/sh\ncase "$*" in *-fopenmp*) exit 1;; esac\nexec "{compiler._compiler()}" "$@"\n')
    apples.chmod(0o700)
    file = compiler._build(str(apples), tmp_path / "decoding.so")
    assert compiler.ctypes.CDLL(str(file)).mtp_panel() > 0
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_only_long_work_on_a_cpu_is_compiled_unasked(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(compiler, "kernels", lambda: "there")
    assert not wanted("auto", CPU, LONG - 1)
    assert wanted("auto", CPU, LONG)
    assert wanted(True, CPU, 1)
    assert not wanted(False, CPU, LONG)
    assert not wanted(True, torch.device("cuda"), LONG)


def test_a_library_that_others_may_have_written_is_not_loaded(tmp_path: Path) -> None:
    file = tmp_path / "decoding.so"
    file.touch(0o700)
    tmp_path.chmod(0o700)
    assert compiler._is_ours(file)
    file.chmod(0o722)
    assert not compiler._is_ours(file)
    file.chmod(0o700)
    tmp_path.chmod(0o777)
    assert not compiler._is_ours(file)


class Loaded(ctypes.CDLL):
    """A library in name alone."""

    def __init__(self, name: str) -> None:
        self.file = Path(name)
        assert self.file.is_file()


@pytest.fixture
def built(fresh: pytest.MonkeyPatch) -> list[Path]:
    """What is built, in place of libraries."""
    files: list[Path] = []

    def build(compiler: str, file: Path) -> Path:
        files.append(file)
        file.touch(0o700)
        return file

    fresh.setattr(compiler, "_compiler", lambda: "c++")
    fresh.setattr(compiler, "_identity", lambda compiler: "0123")
    fresh.setattr(compiler, "_build", build)
    fresh.setattr(compiler.ctypes, "CDLL", Loaded)
    return files


@pytest.mark.parametrize("home", ["a file", "none"])
def test_without_a_folder_to_keep_it_each_process_compiles_and_leaves_nothing(
    built: list[Path], capsys: pytest.CaptureFixture[str], tmp_path: Path, request: pytest.FixtureRequest, home: str
) -> None:
    if home == "none":
        request.getfixturevalue("homeless")
    else:
        (tmp_path / "cache").write_text(home)
    compiler._library()
    assert not built[0].is_relative_to(tmp_path / "cache")
    assert not built[0].parent.exists()
    assert capsys.readouterr().err.count("compiled layers are not kept") == 1


def test_a_library_in_a_folder_that_can_only_be_read_is_used(
    fresh: pytest.MonkeyPatch, built: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    compiler._library()

    def read_only(**_: Any) -> Any:
        raise OSError(30, "Read-only file system")

    fresh.setattr(compiler.tempfile, "TemporaryFile", read_only)
    assert [compiler._library().file] == built  # type: ignore[attr-defined]
    assert not capsys.readouterr().err


def test_a_damaged_library_is_made_again(
    fresh: pytest.MonkeyPatch, built: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    compiler._library()
    loads = iter([OSError("file too short"), None])

    def load(name: str) -> Loaded:
        if error := next(loads):
            raise error
        return Loaded(name)

    fresh.setattr(compiler.ctypes, "CDLL", load)
    assert compiler._library().file == built[0]  # type: ignore[attr-defined]
    assert built == [built[0]] * 2
    assert not capsys.readouterr().err


def test_another_processor_or_source_has_a_library_of_its_own(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fresh.setattr(compiler.subprocess, "run", lambda *args, **kwargs: type("Done", (), {"stdout": b"13.0"}))
    first = compiler._identity("c++")
    assert first == compiler._identity("c++")
    fresh.setattr(compiler, "_processor", lambda: b"flags: none")
    assert compiler._identity("c++") != first
