"""NextLat as it is published, switched on by two files, against its algorithm written out a position at a time."""

from typing import Any

import pytest
import torch
import yaml
from test_objective_heads import gradients, problem
from torch import Tensor

from mtp_lightning.config.config_files import CONF_DIR
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.objective.heads import model_loss
from mtp_lightning.objective.loss import LossOptions
from mtp_lightning.objective.targets import Targets
from mtp_lightning.objective.teacher_config import TeacherConfig
from mtp_lightning.objective.weights import WeightsConfig, head_weights


def asked() -> tuple[HeadsConfig, LossOptions]:
    """What the two files say."""
    heads, loss = (yaml.safe_load((CONF_DIR / room / "next_latent.yaml").read_text())["model"] for room in ROOMS)
    given: dict[str, Any] = loss["loss"]
    return HeadsConfig(**heads["heads"]), LossOptions(**given | {"teacher": TeacherConfig(**given["teacher"])})


ROOMS = ("heads", "loss")


def by_algorithm(model: MTPModel, targets: Targets, steps: int) -> Tensor:
    """Cross-entropy, and the means over the steps of smooth L1 and of KL, both of weight 1 (the release's
    `_nextlat_compute_losses`): states h from the trunk, h^ by rolling the network with the tokens that come."""
    z = model.run_trunk(targets.inputs, where := model.rotary(torch.arange(targets.inputs.shape[1])))
    h, W, F = model.norm(model.heads[0](z, where)), model.unembedding.weight, model.heads[1]
    (B, T), x = targets.inputs.shape, torch.cat([targets.inputs, targets.targets[:, :, -1].t()], dim=1)
    at = [(b, t) for b in range(B) for t in range(T)]
    nll = [-(W @ h[b, t]).log_softmax(0)[x[b, t + 1]] for b, t in at if targets.valid[0, b, t]]
    total = torch.stack(nll).mean()
    for i in range(1, steps + 1):
        distances, divergences = [], []
        for b, t in at:
            if t + i >= T or not targets.valid[i, b, t]:
                continue
            foreseen = h[b, t]
            for j in range(1, i + 1):
                y = torch.cat([model.embedding.weight[x[b, t + j]], foreseen])
                y = F.norm.weight * y / (y.square().mean() + 1e-5).sqrt()
                for w in (F.first.weight, F.second.weight):
                    y = w @ y
                    y = y * (1 + torch.erf(y / 2**0.5)) / 2
                foreseen = foreseen + F.last.weight @ y
            there = h[b, t + i].detach()
            d = (foreseen - there).abs()
            distances.append(torch.where(d < 1, d * d / 2, d - 0.5).mean())
            log_p, log_q = (W.detach() @ there).log_softmax(0), (W.detach() @ foreseen).log_softmax(0)
            divergences.append((log_p.exp() * (log_p - log_q)).sum())
        total = total + (torch.stack(distances).mean() + torch.stack(divergences).mean()) / steps
    return total


@pytest.mark.parametrize("implementation", ["chunked", pytest.param("naive", marks=pytest.mark.slow)])
def test_two_files_switch_on_what_is_published(implementation: Any) -> None:
    heads, options = asked()
    model, documents, targets = problem(heads)
    for weight in model.parameters():  # large enough that smooth L1 has both of its parts
        torch.nn.init.normal_(weight, mean=float(weight.ndim == 1), std=0.3)
    expected = by_algorithm(model, targets, heads.n_future - 1)
    expected.backward()
    theirs = gradients(model)
    model.zero_grad()
    options = LossOptions(**vars(options) | {"implementation": implementation, "chunk_rows": 5})
    weights = head_weights(WeightsConfig(), heads, 0.3)
    out = model_loss(model, targets, documents, weights, options)
    out.total.backward()
    assert out.total.item() == pytest.approx(expected.item(), rel=1e-10)
    assert theirs.keys() == gradients(model).keys()
    for name, ours in gradients(model).items():
        torch.testing.assert_close(ours, theirs[name], rtol=1e-9, atol=1e-12, msg=f"gradient of {name}")
        assert ours.any(), name
