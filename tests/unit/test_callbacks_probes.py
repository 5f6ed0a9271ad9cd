"""Probes while a model learns: what they log and when, and that training does not notice them."""

import io
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from test_callbacks_training import Fit, fit  # noqa: F401 (a fixture)
from typing_extensions import override

from callbacks.base import ProbeCallback, log_spaced, undisturbed
from callbacks.checkpointing import PeriodicCheckpoint
from callbacks.exact_match import ExactMatchProbe
from callbacks.induction import InductionProbe
from mtp_lightning.data.corpora.source import SourceConfig
from mtp_lightning.data.tasks.datamodule import TaskDataModule
from mtp_lightning.data.tasks.star_graph import StarGraph
from mtp_lightning.data.tokens.datamodule import TokenDataModule
from mtp_lightning.errors import InputError
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.probes.suite import InductionSuite, measure_induction

STORIES = SourceConfig(kind="stories", max_documents=40)


def graphs() -> TaskDataModule:
    task = StarGraph(2, 2, 5)
    return TaskDataModule(task, batch_size=4, test_size=8, horizon=2, vocab_size=task.vocab_size)


def stories(tmp_path: Path) -> TokenDataModule:
    return TokenDataModule(
        STORIES, context=64, batch_size=2, horizon=2, validation_fraction=0.5, val_windows=2, directory=str(tmp_path)
    )


def probe(**settings: Any) -> InductionProbe:
    return InductionProbe(
        **({"when": 2, "stories": 4, "quick_stories": 2, "rows": 2, "length": 6, "pictures": False} | settings)
    )


def test_steps_on_a_logarithmic_scale() -> None:
    spaced = [step for step in range(1, 1001) if log_spaced(step)]
    assert spaced[:12] == [1, 2, 3, 4, 6, 7, 10, 13, 18, 24, 32, 42]
    assert spaced[-9:] == [100, 133, 178, 237, 316, 422, 562, 750, 1000]


@pytest.mark.parametrize(
    ("when", "steps"),
    [(5, [0, 5, 10, 12]), ("log", [0, 1, 2, 3, 4, 6, 7, 10, 12]), ("validation", [6, 12])],
)
def test_probes_ask_when_they_are_due(when: Any, steps: list[int], fit: Fit) -> None:  # noqa: F811
    """Also where a step is two batches: once a step."""
    for accumulate in (1, 2):
        _, _, recorder = fit(
            [ExactMatchProbe(when, questions=4)], data=graphs(), accumulate_grad_batches=accumulate,
            val_check_interval=6 * accumulate,
        )  # fmt: skip
        assert recorder.steps("probe/star_graph/path") == steps
        assert recorder.steps("perf/probe/exact_match/seconds") == steps
        assert recorder.steps("perf/probe/exact_match/share_of_time") == steps[-1:]


def test_weights_with_and_without_probes_are_the_same(fit: Fit, tmp_path: Path) -> None:  # noqa: F811
    """All of them in one run, bit by bit; the random state too, which decides nothing here but could."""

    def run(callbacks: list[Any], data: Any) -> tuple[list[torch.Tensor], torch.Tensor, bool]:
        _, module, _ = fit(callbacks, data=data, steps=8)
        return list(module.parameters()), torch.get_rng_state(), module.training

    for probes, data in (([probe()], lambda: stories(tmp_path)), ([ExactMatchProbe(1)], graphs)):
        plain, state, _ = run([], data())
        probed, probed_state, training = run(probes, data())
        assert all(torch.equal(a, b) for a, b in zip(plain, probed))
        assert torch.equal(state, probed_state)
        assert training


def test_a_probe_that_draws_and_derives_leaves_no_trace(fit: Fit) -> None:  # noqa: F811
    class Rude(ProbeCallback):
        name = "rude"

        @override
        def measure(self, trainer: Any, model: MTPModel, at_end: bool) -> dict[str, float]:
            assert not model.training
            assert not torch.is_grad_enabled()
            return {"probe/rude": torch.rand(()).item() + model(torch.zeros(1, 3, dtype=torch.long)).sum().item()}

    _, plain, _ = fit([])
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with undisturbed():
        torch.rand(7)
    assert torch.equal(torch.rand(3), expected)
    modes: list[bool] = []

    class Watch(pl.Callback):
        @override
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            modes.extend(part.training for part in module.modules())

    _, probed, recorder = fit([Rude(1), Watch()])
    assert all(modes), "back in the mode of training before the next step"
    assert recorder.steps("probe/rude") == list(range(13))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), probed.parameters()))


def test_what_the_induction_probe_logs(fit: Fit, tmp_path: Path) -> None:  # noqa: F811
    _, _, recorder = fit([probe(pictures=True, when=6)], data=stories(tmp_path / "data"))
    names = {"accuracy", "loss", "chance", "copy_oracle", "mention_1", "mention_2"}
    every = {f"names_{variant}/{name}" for variant in ("seen", "any") for name in names}
    every |= {f"repeated/{what}/head_{i}" for what in ("first_loss", "loss", "accuracy") for i in (1, 2)}
    every |= {f"{score}/{what}" for score in ("prefix_matching", "previous_token") for what in ("max", "top_3")}
    (first, middle, end) = [metrics for _, metrics in recorder.calls if "probe/induction/names_seen/loss" in metrics]
    for metrics in (first, middle, end):
        found = {name.removeprefix("probe/induction/") for name in metrics if name.startswith("probe/induction/")}
        assert every <= found
        ablated = {f"without_{which}_3" for which in ("top", "lowest")}
        last = {f"{which}/{what}/drop" for which in ablated for what in ("names_seen", "names_any", "repeated")}
        last |= {
            f"{what}/reached" for what in ("names_seen/accuracy", "names_any/accuracy", "repeated/accuracy/head_1")
        }
        assert {name for name in found - every if "mention" not in name} == (last if metrics is end else set())
    assert first["probe/induction/names_seen/loss"] == pytest.approx(5.545, abs=0.3), "ln 256, before training"
    pictures = sorted((tmp_path / "pictures/induction").iterdir())
    assert [p.name for p in pictures] == ["film.png", *(f"step-{step:08d}.png" for step in (0, 6, 12))]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)


def test_data_that_are_no_text_are_asked_to_repeat_only(fit: Fit) -> None:  # noqa: F811
    _, _, recorder = fit([probe()])
    assert recorder.steps("probe/induction/repeated/loss/head_1") == [0, 2, 4, 6, 8, 10, 12]
    assert not recorder.steps("probe/induction/names_seen/loss")


def test_lead_time_is_the_first_step_above_a_half_and_survives_a_restart(fit: Fit, tmp_path: Path) -> None:  # noqa: F811
    accuracies = {0: 0.1, 3: 0.6, 6: 0.4, 9: 0.9, 12: 0.9}

    class Scripted(ProbeCallback):
        name = "scripted"

        @property
        @override
        def lead_metrics(self) -> dict[str, float]:
            return {"probe/scripted": 0.5, "probe/never": 0.21}

        @override
        def measure(self, trainer: Any, model: MTPModel, at_end: bool) -> dict[str, float]:
            return {"probe/scripted": accuracies[trainer.global_step], "probe/never": 0.2}

    scripted = Scripted(3)
    _, _, recorder = fit([scripted, PeriodicCheckpoint(every_n_steps=6)])
    assert recorder.steps("probe/scripted/lead_step") == [12]
    assert recorder.last["probe/scripted/lead_step"] == 3
    assert recorder.last["probe/scripted/reached"] == 1
    assert recorder.last["probe/never/reached"] == 0
    assert not recorder.steps("probe/never/lead_step")
    saved = torch.load(tmp_path / "checkpoints/step-00000006.ckpt", weights_only=True)["callbacks"]
    again = Scripted(3)
    again.load_state_dict(next(state for key, state in saved.items() if "Scripted" in key))
    assert again.lead_steps == {"probe/scripted": 3}


def test_the_history_of_attention_heads_travels_in_checkpoints(fit: Fit, tmp_path: Path) -> None:  # noqa: F811
    first = probe()
    fit([first])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    again = probe()
    again.load_state_dict(torch.load(file, weights_only=True))
    assert [step for step, _ in again._history] == [0, 2, 4, 6, 8, 10, 12]
    for (_, mine), (_, theirs) in zip(first._history, again._history):
        assert mine.layers == theirs.layers
        assert torch.equal(mine.prefix_matching, theirs.prefix_matching)


def test_all_questions_at_the_end_some_before(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    asked: list[int] = []

    def count(model: MTPModel, task: Any, sets: dict[str, Any]) -> dict[str, float]:
        asked.append(len(sets["path"].lengths))
        return {"path": 0.0}

    monkeypatch.setattr("callbacks.exact_match.exact_match", count)
    fit([ExactMatchProbe(4, questions=3)], data=graphs())
    assert asked == [3, 3, 3, 8]


def test_half_of_the_way_from_chance_is_what_counts(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """With two paths to choose from a half is nothing."""
    scripted = iter([0.4, 0.6, 0.74, 0.75])
    monkeypatch.setattr("callbacks.exact_match.exact_match", lambda *_: {"path": next(scripted)})
    _, _, recorder = fit([ExactMatchProbe(4)], data=graphs())
    assert recorder.last["probe/star_graph/path/lead_step"] == 12


def test_all_stories_at_the_end_some_before(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    asked: list[int] = []

    def count(model: MTPModel, suite: InductionSuite) -> Any:
        asked.append(len(suite.stories["any"].lengths))
        return measure_induction(model, suite)

    monkeypatch.setattr("callbacks.induction.measure_induction", count)
    fit([probe(when=6)], data=stories(tmp_path))
    assert asked == [2, 2, 4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InductionProbe(when=0), r"InductionProbe\.when is 0"),
        (lambda: InductionProbe(stories=0), r"InductionProbe\.stories is 0"),
        (lambda: ExactMatchProbe(questions=0), r"ExactMatchProbe\.questions is 0"),
    ],
)
def test_settings_that_cannot_be(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_text_without_names_is_refused_before_training(fit: Fit, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "a.txt").write_text("\n\n".join("no one is here, nor was anyone here before." for _ in range(40)))
    source = SourceConfig(kind="text", path=str(tmp_path / "a.txt"), separator="\\n\\n")
    data = TokenDataModule(
        source, context=16, batch_size=2, horizon=2, validation_fraction=0.5, directory=str(tmp_path)
    )
    with pytest.raises(InputError, match=r"^InductionProbe: none of the \d+ stories has a name"):
        fit([probe()], data=data)
    _, _, recorder = fit([probe(names=False)], data=data)
    assert recorder.steps("probe/induction/repeated/loss/head_1")[-1] == 12


def test_copies_that_are_too_short_for_the_heads_are_refused_by_key(fit: Fit) -> None:  # noqa: F811
    with pytest.raises(InputError, match=r"^InductionProbe.length is 2, and the heads look up to 2 tokens ahead"):
        fit([InductionProbe(length=2)])
