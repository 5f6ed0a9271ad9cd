"""`mtp bench decode --peer transformers_mtp`: the same text from the exported model, in as many forwards."""

import json
import sys
from pathlib import Path

import pytest
import torch
from test_checkpoints import save
from test_interop_export import teach, trained
from tiny import tiny_backbone

from mtp_lightning.bench.decode import decode_command
from mtp_lightning.bench.decode.decode_contenders import clock_for, ours
from mtp_lightning.bench.decode.decode_measure import bench_decode
from mtp_lightning.bench.decode.decode_mtp_peer import transformers_mtp, why_not
from mtp_lightning.bench.decode.decode_report import USE_MTP
from mtp_lightning.cli import main
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel

pytest.importorskip("transformers")


@pytest.mark.slow
def test_the_peer_decodes_our_text_in_as_many_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtp_lightning.bench.decode.decode_measure.read_bandwidth", lambda nbytes, clock: 1.0)
    model = trained(HeadsConfig(n_future=3, kind="recurrent"))
    teach(model)
    clock = clock_for(torch.device("cpu"), 1)
    prompts = [torch.randint(0, 256, (6,), generator=torch.Generator().manual_seed(i)) for i in range(4)]
    with transformers_mtp(model, torch.float32, 48, clock) as peer:
        engine, forwards = Engine(model), [0, 0]
        for prompt in prompts:
            mine, theirs = ours(engine, 3, 48, clock)([prompt]), peer([prompt])
            assert mine.texts == theirs.texts
            assert theirs.seconds > 0
            forwards = [forwards[0] + 1 + len(mine.generations[0].steps), forwards[1] + theirs.forwards]
        assert forwards[1] == pytest.approx(forwards[0], rel=0.05)
        assert 4 * 48 / 3 <= forwards[0] < 4 * 48 / 1.2, "drafts are taken"
        with pytest.raises(ValueError, match="batch"):
            peer(prompts[:2])
        rows, _ = bench_decode(
            "it",
            model,
            prompts,
            [1, 2],
            [1, 3],
            48,
            2,
            torch.float32,
            clock,
            lambda: None,
            lambda text: None,
            {USE_MTP: peer},
        )
    of_peer = [row for row in rows if row["arm"] == USE_MTP]
    assert [(row["batch"], row["texts"], row["equal"]) for row in of_peer] == [(1, 2, 2)]
    assert 1 < of_peer[0]["tokens_per_forward"] <= 3
    assert all(("over_use_mtp" in row) == (row["batch"] == 1) for row in rows if row["arm"].startswith("k"))


def test_what_has_no_such_peer_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_not(trained(HeadsConfig(n_future=2, kind="sequential"))) == ""
    assert "'sequential' and 'recurrent' heads, and this model has 2 of kind 'parallel'" in why_not(
        trained(HeadsConfig(n_future=2))
    )
    monkeypatch.setattr("transformers.__version__", "5.13.0")
    assert why_not(trained(HeadsConfig(n_future=2))).startswith("transformers 5.13.0 is installed, and 5.14 is needed")
    monkeypatch.setitem(sys.modules, "transformers", None)
    reason = why_not(trained(HeadsConfig(n_future=2)))
    assert reason.startswith("transformers is not installed: pip install")
    assert "verify" not in reason, "a flag of export"


def small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command over two checkpoints, of three sequential heads and of two parallel ones."""
    monkeypatch.chdir(folder)
    for kind, n in (("sequential", 3), ("parallel", 2)):
        heads = HeadsConfig(n_future=n, kind=kind)  # type: ignore[arg-type]
        save(folder / f"{kind}.ckpt", MTPModel(tiny_backbone(vocab_size=256, n_layers=4), heads))
    (folder / "corpus").mkdir()
    for i in range(40):
        (folder / "corpus" / f"{i}.txt").write_text(f"text number {i} of a small corpus, and some more of it\n" * 4)
    flags = ["--kind=text", "--path=corpus", "--prompt_tokens=9", "--new_tokens=4", "--rounds=1", "--batch=[1]"]
    return ["bench", "decode", "--ckpts", "[sequential.ckpt, parallel.ckpt]", *flags]


def test_a_model_without_the_peer_costs_no_other_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = small(tmp_path, monkeypatch)
    assert main([*command, "--peer", "transformers_mtp", "--json", "rows.json"]) == 0
    said = capsys.readouterr().err
    assert "n = 2, L = 4: no comparison with generate(use_mtp=True): it decodes 'sequential'" in said
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["model"] for row in rows if row["arm"] == USE_MTP] == ["n = 3, L = 4, sequential"]
    assert {row["model"] for row in rows} == {"n = 3, L = 4, sequential", "n = 2, L = 4"}


def test_what_one_model_cannot_do_is_refused_before_another_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = small(tmp_path, monkeypatch)
    monkeypatch.setattr(decode_command, "bench_decode", lambda *_: pytest.fail("measured"))
    assert main([*command, "--heads_used", "[3]"]) == 2
    assert "heads_used is 3: this model has 2 prediction heads" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists(), "no corpus is prepared for a command that is refused"


@pytest.mark.parametrize("peer", ["transformers_mtp", "llama_cpp"])
def test_a_peer_that_would_never_decode_is_refused(peer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "decode", "--peer", peer, "--batch", "[2, 4]"]) == 2
    assert f"peer is '{peer}', which decodes one text at a time, and batch is [2, 4]" in capsys.readouterr().err


def test_the_command_takes_the_peer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"n_future": 2, "dim": 32, "n_layers": 3, "n_heads": 2, "ffn_dim": 48, "prompt_tokens": 5, "new_tokens": 6}
    flags = [f"--{key}={value}" for key, value in {**sizes, "rounds": 1, "batch": "[1]"}.items()]
    out = tmp_path / "rows.json"
    assert main(["bench", "decode", "--peer", "transformers_mtp", *flags, "--json", str(out)]) == 0
    assert "use_mtp" in capsys.readouterr().out
    assert USE_MTP in [row["arm"] for row in json.loads(out.read_text())["rows"]]
