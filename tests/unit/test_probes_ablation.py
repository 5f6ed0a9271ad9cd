"""Mean ablation of attention heads, and a model set by hand to do induction and nothing else."""

import pytest
import torch
from test_probes_attention import EACH, MakeModel, problem
from tiny import tiny_backbone
from torch import Tensor, nn

from mtp_lightning.errors import InputError
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.objective.targets import make_targets
from mtp_lightning.probes import ablation
from mtp_lightning.probes.ablation import mean_ablation
from mtp_lightning.probes.attention import (
    attention_layers,
    attention_scores,
)
from mtp_lightning.probes.repeated import repetition


def test_ablating_nothing_changes_nothing_and_the_end_restores_all(make_model: MakeModel) -> None:
    model, windows = make_model(2, init_std=0.3), torch.randint(0, 16, (3, 8))
    tokens = torch.randint(0, 16, (2, 6))
    before = model(tokens)
    with mean_ablation(model, [], windows):
        assert torch.equal(model(tokens), before)
    with mean_ablation(model, [("trunk_1", 1)], windows):
        assert not torch.allclose(model(tokens), before, atol=1e-3)
    assert torch.equal(model(tokens), before)


def test_a_layer_without_its_heads_says_the_mean_of_what_it_said(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation, "ROWS", 2)
    model, windows = make_model(2, init_std=0.3), torch.randint(0, 16, (3, 8))
    tokens = torch.randint(0, 16, (2, 6))
    module = attention_layers(model)["trunk_1"]
    said: list[Tensor] = []
    handle = module.register_forward_hook(lambda module, args, output: said.append(output))
    model(windows[:, :6])
    with mean_ablation(model, [("trunk_1", 0), ("trunk_1", 1)], windows):
        del said[1:]
        model(tokens)
    handle.remove()
    ordinary, ablated = said
    torch.testing.assert_close(ablated, ordinary.mean((0, 1)).expand(2, 6, 32))  # wo is linear


def test_only_the_named_heads_are_replaced_by_means_of_the_whole_model(make_model: MakeModel) -> None:
    model, windows = make_model(2, n_heads=4, init_std=0.3), torch.randint(0, 16, (3, 8))
    layers = attention_layers(model)
    read: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, args: tuple[Tensor]) -> None:
        read[module] = args[0]

    def read_now() -> list[Tensor]:
        handles = [layers[name].wo.register_forward_pre_hook(keep) for name in ("trunk_1", "head_2")]
        model(windows[:, :6])
        for handle in handles:
            handle.remove()
        return [read[layers[name].wo] for name in ("trunk_1", "head_2")]

    trunk, further = read_now()
    with mean_ablation(model, [("trunk_1", 2), ("head_2", 0)], windows):
        trunk_cut, further_cut = read_now()
    torch.testing.assert_close(trunk_cut[..., 16:24], trunk[..., 16:24].mean((0, 1)).expand(3, 6, 8))
    assert torch.equal(trunk_cut[..., :16], trunk[..., :16])
    assert torch.equal(trunk_cut[..., 24:], trunk[..., 24:])
    torch.testing.assert_close(further_cut[..., :8], further[..., :8].mean((0, 1)).expand(3, 6, 8))
    assert not torch.allclose(further_cut[..., 8:], further[..., 8:], atol=1e-4)  # it reads another trunk


@EACH
def test_ablation_knows_every_kind(heads: HeadsConfig) -> None:
    model, windows = problem(heads)
    targets = make_targets(heads, windows)
    before = model(targets.inputs, None, targets.targets)
    for name in attention_layers(model):
        with mean_ablation(model, [(name, 1)], windows):
            assert not torch.allclose(model(targets.inputs, None, targets.targets), before, atol=1e-4)


@pytest.mark.parametrize("head", [("trunk_9", 0), ("trunk_1", 2), ("trunk_1", -1)])
def test_heads_that_are_not_there_are_refused(make_model: MakeModel, head: tuple[str, int]) -> None:
    model, windows = make_model(2), torch.randint(0, 16, (2, 8))
    with (
        pytest.raises(InputError, match=r"the layers are trunk_1, head_1, head_2, .* 0 to 1"),
        mean_ablation(model, [head], windows),
    ):
        pass


def induction_by_hand() -> MTPModel:
    """Two layers, two heads each: ("trunk_1", 0) looks at the previous token and writes down which it is, ("head_1", 1)
    looks for the note that equals the current token and says the token there. The other two average what they see
    into coordinates that nobody reads.

    The stream: 0-15 the token, 16-31 the previous token, 32-47 the answer, 48 a constant, 49-63 unread. RoPE's pairs
    (j, j + 16) turn by 10^-j a position: pairs 0 and 1 tell distances, from pair 3 on they hardly turn.
    """
    torch.manual_seed(0)
    config = tiny_backbone(dim=64, n_layers=2, ffn_dim=8, rope_theta=1e16)
    model = MTPModel(config, HeadsConfig()).eval()
    token, previous, answer, unread = range(16), range(16, 32), range(32, 48), range(49, 64)
    still = [*range(3, 16), *range(19, 22)]  # coordinates of a head in which content meets content
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float(parameter.ndim == 1))
        model.embedding.weight[:, :16] = torch.eye(16)
        model.embedding.weight[:, 48] = 1
        first, second = (attention_layers(model)[name] for name in ("trunk_1", "head_1"))
        for pair, angle in ((0, 1.0), (1, 0.1)):
            first.wq.weight[pair, 48] = 8
            first.wk.weight[pair, 48] = 8 * torch.tensor(angle).cos()
            first.wk.weight[pair + 16, 48] = 8 * torch.tensor(angle).sin()
        for i in range(16):
            first.wv.weight[i, token[i]] = first.wo.weight[previous[i], i] = 0.5
            second.wq.weight[32 + still[i], token[i]] = second.wk.weight[32 + still[i], previous[i]] = 4
            second.wv.weight[32 + i, token[i]] = second.wo.weight[answer[i], 32 + i] = 1
            model.unembedding.weight[i, answer[i]] = 5
        for module, idle in ((first, slice(32, 64)), (second, slice(0, 32))):
            module.wv.weight[idle] = torch.randn(32, 64) * 0.1
            module.wo.weight[unread, idle] = torch.randn(15, 32) * 0.1
    return model


def test_a_model_built_to_do_induction_is_found_out_and_broken() -> None:
    model = induction_by_hand()
    windows = torch.stack([torch.randperm(16) for _ in range(8)]).repeat(1, 2)
    scores = attention_scores(model, windows)
    assert scores.top(1) == [("head_1", 1)]
    assert scores.top(1, "previous_token") == [("trunk_1", 0)]
    # at the second copy's first token up to half goes to the first's, which has noted itself as its previous token
    assert scores.prefix_matching[1, 1] > 14.4 / 15
    assert scores.previous_token[0, 0] > 0.99
    assert scores.prefix_matching.flatten()[:3].max() < 0.2

    def accuracy(*heads: tuple[str, int]) -> float:
        with mean_ablation(model, heads, windows):
            return repetition(model, windows, 16).summary()["accuracy/head_1"]

    assert accuracy() > 0.93
    assert accuracy(("head_1", 1)) < 0.2
    assert accuracy(("trunk_1", 0)) < 0.2
    assert accuracy(("head_1", 0), ("trunk_1", 1)) > 0.93
