"""`mtp bench decode --peer transformers_mtp`: the same text from the exported model, in as many forwards."""

import json
from pathlib import Path

import pytest
import torch
from test_interop_export import teach, trained

from mtp_lightning.bench.decode.decode_contenders import clock_for, ours
from mtp_lightning.bench.decode.decode_measure import bench_decode
from mtp_lightning.bench.decode.decode_mtp_peer import transformers_mtp
from mtp_lightning.bench.decode.decode_report import USE_MTP
from mtp_lightning.cli import main
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.errors import InputError
from mtp_lightning.model.config import HeadsConfig

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


def test_other_heads_have_no_such_peer() -> None:
    model = trained(HeadsConfig(n_future=2))
    with (
        pytest.raises(InputError, match="'sequential' and 'recurrent' heads, and this model has 2 of kind 'parallel'"),
        transformers_mtp(model, torch.float32, 4, clock_for(torch.device("cpu"), 1)),
    ):
        pass


def test_the_command_takes_the_peer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"n_future": 2, "dim": 32, "n_layers": 3, "n_heads": 2, "ffn_dim": 48, "prompt_tokens": 5, "new_tokens": 6}
    flags = [f"--{key}={value}" for key, value in {**sizes, "rounds": 1, "batch": "[1]"}.items()]
    out = tmp_path / "rows.json"
    assert main(["bench", "decode", "--peer", "transformers_mtp", *flags, "--json", str(out)]) == 0
    assert "use_mtp" in capsys.readouterr().out
    assert USE_MTP in [row["arm"] for row in json.loads(out.read_text())["rows"]]
