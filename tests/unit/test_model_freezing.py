"""What is frozen has no gradient, no optimizer state and keeps no activations; counts and FLOPs say so."""

import subprocess
import sys
import weakref

import pytest
import torch
from tiny import VARIANTS, tiny_backbone

from mtp_lightning.errors import InputError
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.counts import count_parameters, flops_per_token, trainable_parameters
from mtp_lightning.model.memory import state_memory
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.model.training.freezing import Freeze, check_freeze, freeze_model
from mtp_lightning.module import MTPModule
from mtp_lightning.objective.heads import model_loss
from mtp_lightning.objective.targets import make_targets
from mtp_lightning.optimization.adamw import OptimizerConfig, make_adamw

FROZEN: tuple[Freeze, ...] = ("trunk", "trunk_and_unembedding", "next_token")
BACKBONE = tiny_backbone(n_layers=8)


def possible(freeze: Freeze, heads: HeadsConfig) -> bool:
    try:
        check_freeze(freeze, BACKBONE, heads)
    except InputError:
        return False
    return True


ALL = [(freeze, heads) for freeze in FROZEN for heads in VARIANTS.values() if possible(freeze, heads)]


@pytest.mark.parametrize(("freeze", "heads"), ALL, ids=str)
@pytest.mark.usefixtures("shapes_unchecked")
def test_frozen_weights_have_no_gradients_and_the_others_the_same(freeze: Freeze, heads: HeadsConfig) -> None:
    torch.manual_seed(0)
    model = MTPModel(BACKBONE, heads)
    targets = make_targets(heads, torch.randint(0, 16, (2, 6 + heads.horizon)))
    model_loss(model, targets).total.backward()
    whole = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    freeze_model(model, freeze)
    model_loss(model, targets).total.backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert torch.equal(p.grad, whole[name]), name  # type: ignore[arg-type]
        else:
            assert p.grad is None, name
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == trainable_parameters(BACKBONE, heads, freeze)
    optimizer = make_adamw(model.parameters(), OptimizerConfig())
    optimizer.step()
    assert len(optimizer.state) == len(trained)


@pytest.mark.parametrize("heads", [HeadsConfig(3), HeadsConfig(3, "sequential"), HeadsConfig(3, "linear")], ids=str)
def test_next_token_keeps_the_next_token_model_bit_for_bit(heads: HeadsConfig) -> None:
    torch.manual_seed(0)
    model = MTPModel(BACKBONE, heads)
    tokens = torch.randint(0, 16, (2, 9))
    before = model.next_token_states(tokens)
    freeze_model(model, "next_token")
    optimizer = make_adamw(model.parameters(), OptimizerConfig(lr=0.1))
    for _ in range(3):
        model_loss(model, make_targets(heads, tokens)).total.backward()
        optimizer.step()
    assert torch.equal(model.next_token_states(tokens), before)


def test_a_frozen_trunk_keeps_nothing_for_a_backward_pass() -> None:
    model = MTPModel(BACKBONE, HeadsConfig(2))
    freeze_model(model, "trunk")
    kept: list[weakref.ref[torch.Tensor]] = []
    model.trunk[0].register_forward_hook(lambda *args: kept.append(weakref.ref(args[2])))
    h = model(torch.zeros(1, 4, dtype=torch.long))
    assert h.requires_grad
    assert kept[0]() is None


def test_flops_count_what_is_computed() -> None:
    """By hand for n = 2 parallel heads at T positions: forward and gradient of inputs and of weights, each 2 per
    weight; attention 2 T d a layer and direction."""
    heads, T, d, U = HeadsConfig(2), 10, 32, 2 * 16 * 32
    layer = 2 * (4 * d * d + 3 * d * 48) + 2 * T * d
    trunk = 6 * layer
    assert flops_per_token(BACKBONE, heads, T) == 3 * (trunk + 2 * layer + 2 * U)
    assert flops_per_token(BACKBONE, heads, T, "trunk") == trunk + 3 * (2 * layer + 2 * U)
    assert flops_per_token(BACKBONE, heads, T, "trunk_and_unembedding") == trunk + 3 * 2 * layer + 2 * 2 * U
    assert flops_per_token(BACKBONE, heads, T, "next_token") == trunk + (layer + U) + 3 * layer + 2 * U


def test_states_take_16_bytes_where_they_train_and_4_where_not() -> None:
    heads, total = HeadsConfig(2), count_parameters(BACKBONE, HeadsConfig(2)).total
    trained = trainable_parameters(BACKBONE, heads, "trunk")
    assert state_memory(BACKBONE, heads) == 16 * total
    assert state_memory(BACKBONE, heads, "trunk") == 16 * trained + 4 * (total - trained)
    described = MTPModule(BACKBONE, heads, freeze="trunk").describe(10)
    assert described["model/parameters_trained"] == trained
    assert "model/parameters_trained" not in MTPModule(BACKBONE, heads).describe(10)


@pytest.mark.parametrize(("freeze", "heads", "tied", "says"), [
    ("trunk", HeadsConfig(2), True, "tie_embeddings makes embedding and unembedding one matrix"),
    ("next_token", HeadsConfig(1), False, "model.freeze is 'next_token', and model.heads.n_future is 1: nothing"),
    ("next_token", HeadsConfig(3, "none"), False, "kind 'none' are all read by head 1: nothing would train"),
    ("next_token", HeadsConfig(3, "anticausal"), False, "kind 'anticausal' are all read by head 1"),
])  # fmt: skip
def test_what_cannot_be_frozen(freeze: Freeze, heads: HeadsConfig, tied: bool, says: str) -> None:
    with pytest.raises(InputError, match=says):
        MTPModule(tiny_backbone(n_layers=8, tie_embeddings=tied), heads, freeze=freeze)


def test_a_tied_matrix_is_frozen_as_a_whole() -> None:
    model = MTPModel(tiny_backbone(tie_embeddings=True), HeadsConfig(1))
    freeze_model(model, "trunk_and_unembedding")
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {"heads"}


MEASURE = """
import sys, warnings
import torch
import lightning.pytorch as pl
from mtp_lightning.data.loader import ResumableLoader
from mtp_lightning.model.config import BackboneConfig, HeadsConfig
from mtp_lightning.module import MTPModule
warnings.simplefilter("ignore")
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
batch = {"tokens": torch.zeros(2, 130, dtype=torch.long), "documents": torch.zeros(2, 130, dtype=torch.int)}
def fit(dim, layers, freeze):
    backbone = BackboneConfig(dim=dim, n_layers=layers, n_heads=dim // 64)
    module = MTPModule(backbone, HeadsConfig(2, match="none"), freeze=freeze)
    trainer = pl.Trainer(accelerator="cpu", max_steps=2, max_epochs=1, logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False)
    trainer.fit(module, train_dataloaders=ResumableLoader([batch, batch], 2))
    return sum(weight.numel() for weight in module.parameters())
fit(64, 2, "none")  # what the libraries take
before = peak()
parameters = fit(512, 8, sys.argv[1])
print(parameters, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_frozen_fit_takes_at_most_six_tenths_of_the_memory() -> None:
    """Of a whole fit of 30 million weights, steps with their optimizer included, in processes of their own."""
    used: dict[str, int] = {}
    for freeze in ("none", "trunk", "next_token"):
        done = subprocess.run([sys.executable, "-c", MEASURE, freeze], capture_output=True, text=True, check=True)
        parameters, used[freeze] = map(int, done.stdout.split()[-2:])
        assert parameters == pytest.approx(30e6, rel=0.1)
    assert used["trunk"] <= 0.6 * used["none"], used
    assert used["next_token"] <= 0.6 * used["none"], used
