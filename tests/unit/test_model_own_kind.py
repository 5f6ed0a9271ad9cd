"""Heads of a user's own kind: counted, matched, trained, decoded plainly; never imported because of a checkpoint."""

import sys
from dataclasses import asdict
from pathlib import Path

import my_heads
import pytest
import torch
from tiny import tiny_backbone

from mtp_lightning.checkpoints.files import LoadedModel, load_model, save_safetensors
from mtp_lightning.cli import main
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.errors import InputError
from mtp_lightning.model.config import CHECKPOINT_FORMAT, CHECKPOINT_KEY, HeadsConfig
from mtp_lightning.model.counts import count_parameters, flops_per_token
from mtp_lightning.model.memory import training_memory
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.module import MTPModule
from mtp_lightning.objective.heads import check_options
from mtp_lightning.objective.loss import LossOptions

OTHERS = {"my_heads.LikeParallel": "parallel", "my_heads.LikeRecurrent": "recurrent"}


@pytest.mark.parametrize("own", OTHERS)
@pytest.mark.parametrize("n_future", [1, 3])
@pytest.mark.parametrize("more", [{}, {"layers": 2}, {"replicate_unembedding": True}, {"match": "none"}], ids=str)
def test_what_is_counted_is_what_the_formulas_say(own: str, n_future: int, more: dict[str, object]) -> None:
    """Of kinds that there is a formula for, written once more as own ones."""
    backbone = tiny_backbone(n_layers=9, n_kv_heads=1)
    mine, known = (HeadsConfig(n_future=n_future, kind=kind, **more) for kind in (own, OTHERS[own]))  # type: ignore[arg-type]
    assert count_parameters(backbone, mine) == count_parameters(backbone, known)
    assert flops_per_token(backbone, mine, 24) == flops_per_token(backbone, known, 24)
    assert training_memory(backbone, mine, 2, 24, 4) == pytest.approx(
        training_memory(backbone, known, 2, 24, 4), rel=0.1
    )  # what its heads read is not known


@pytest.mark.parametrize("n_future", [1, 2, 4])
def test_matched_to_the_next_token_model(n_future: int) -> None:
    backbone, heads = tiny_backbone(n_layers=6), HeadsConfig(n_future=n_future, kind="my_heads.Gated")
    counts = count_parameters(backbone, heads)
    assert counts.total == sum(p.numel() for p in MTPModel(backbone, heads).parameters())
    one = count_parameters(backbone, HeadsConfig())
    assert abs(counts.total - one.total) <= 3 * backbone.dim * 2


def test_a_kind_may_read_the_token_at_its_position_too() -> None:
    backbone, heads = tiny_backbone(n_layers=4), HeadsConfig(n_future=3, kind="my_heads.FromTokens", match="none")
    model = MTPModel(backbone, heads)
    assert count_parameters(backbone, heads).total == sum(p.numel() for p in model.parameters())
    window_BL = torch.randint(16, (2, 9))
    ahead_NBT = torch.stack([window_BL[:, i : i + 6] for i in (1, 2, 3)])
    h_1BTD = model.heads[0](model.run_trunk(window_BL[:, :6], where := model.rotary(torch.arange(6))), where)
    read = [model.embedding(window_BL[:, i : i + 6]) for i in range(3)]
    expected = model.norm(torch.stack([h_1BTD, h_1BTD + read[0] + read[1], h_1BTD + read[0] + read[1] + read[2]]))
    torch.testing.assert_close(model(window_BL[:, :6], None, ahead_NBT), expected)


def test_head_1_is_the_next_token_model_and_decodes_plainly() -> None:
    torch.manual_seed(0)
    model = MTPModel(tiny_backbone(n_layers=4), HeadsConfig(n_future=3, kind="my_heads.Gated")).eval()
    tokens_BT = torch.randint(16, (2, 7))
    h_NBTD = model(tokens_BT)
    assert h_NBTD.shape == (3, 2, 7, 32)
    assert torch.equal(model.next_token_states(tokens_BT), h_NBTD[0])
    assert Engine(model).heads_used == 1
    with pytest.raises(InputError, match=r"heads_used is 3: a model of kind 'my_heads\.Gated'"):
        Engine(model, heads_used=3)


def test_the_gradient_of_further_heads_can_be_kept_out_of_the_trunk() -> None:
    heads = HeadsConfig(n_future=2, kind="my_heads.Gated")
    check_options(LossOptions(stop_gradient="trunk"), heads)
    model = MTPModel(tiny_backbone(n_layers=4), heads)
    model(torch.randint(16, (1, 5)), detach_further=True)[1].sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {"heads.1.weight", "heads.1.bias", "norm.weight"}


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("sequental", "did you mean 'sequential'"),
        ("my_heads.Gatd", "did you mean 'Gated'"),
        ("my_heads.NoHeads", r"has to be a subclass of mtp_lightning\.model\.heads\.Heads"),
        ("my_heads.OwnStates", "may not override `states`"),
        ("my_heads.OwnForward", "may not override `states`, `first` or `forward`"),
        ("my_heads.NoStack", r"has to be head 1, Stack\(backbone, heads\.layers\)"),
        ("my_heads.OneShort", "gave 1 states: .* heads 2 .. n_future = 3, 2 in all"),
        ("my_heads.WrongShape", r"gave a state of the shape \(1, 1, 1\)"),
        ("no_such.Gated", "cannot import 'no_such': ModuleNotFoundError"),
        ("my_broken.Gated", "cannot import 'my_broken': ZeroDivisionError"),
    ],
)
def test_what_is_no_kind_is_refused(kind: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=says):
        MTPModule(tiny_backbone(n_layers=5), HeadsConfig(n_future=3, kind=kind))


FOREIGN = "from my_heads import Gated\nopen('executed', 'w').close()\n"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint and an exported file, both of the kind `foreign_heads.Gated`, beside the module."""
    (tmp_path / "foreign_heads.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "foreign_heads", my_heads)
    model = MTPModel(tiny_backbone(n_layers=4, vocab_size=256), HeadsConfig(n_future=2, kind="foreign_heads.Gated"))
    described = {
        "format": CHECKPOINT_FORMAT,
        "backbone": asdict(model.config),
        "heads": asdict(model.heads_config),
        "tokenizer": ByteTokenizer().state(),
    }
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({CHECKPOINT_KEY: described, "state_dict": weights, "global_step": 3}, tmp_path / "a.ckpt")
    loaded = LoadedModel(tmp_path / "a.ckpt", model, ByteTokenizer(), 3, None, None)
    save_safetensors(loaded, tmp_path / "a.safetensors")
    monkeypatch.delitem(sys.modules, "foreign_heads")
    return tmp_path


@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors"])
def test_a_checkpoint_imports_nothing(files: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"'foreign_heads\.Gated', .* add `--import foreign_heads`"):
        load_model(files / name)
    assert not (files / "executed").exists()


@pytest.mark.parametrize("flag", [["--import", "foreign_heads"], ["--import=foreign_heads"]], ids=" ".join)
def test_the_command_line_does_where_asked_to(
    files: Path, flag: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["generate", "a.safetensors", "--prompt", "ab", "--max_new_tokens", "4"]) == 2
    assert "--import foreign_heads" in capsys.readouterr().err
    assert main(["generate", *flag, "a.safetensors", "--prompt", "ab", "--max_new_tokens", "4"]) == 0
    monkeypatch.delitem(sys.modules, "foreign_heads")
    assert (files / "executed").exists()
    assert "plain decoding" in capsys.readouterr().err
    assert main(["generate", "a.ckpt", "--prompt", "ab", "--import"]) == 2
    assert "--import: cannot import ''" in capsys.readouterr().err
