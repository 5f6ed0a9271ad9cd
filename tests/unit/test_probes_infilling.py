"""Middles that are asked for: losses against ones written out, joins, and a model that knows its texts and fills."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from spaced import spaced
from test_callbacks_training import Fit, fit
from test_interop_export import save
from tiny import tiny_backbone

from callbacks.infilling import InfillingProbe
from mtp_lightning.cli import main
from mtp_lightning.data.corpora.source import SourceConfig
from mtp_lightning.data.tokens.datamodule import TokenDataModule
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer
from mtp_lightning.data.transforms.infilling import (
    InfillingConfig,
    Order,
    Sentinels,
    WindowTransform,
    infilling_prompt,
    needed_sentinels,
)
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.decoding.generate import Generation, Step
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.objective.heads import model_loss
from mtp_lightning.objective.targets import make_targets
from mtp_lightning.probes.infilling import Asking, Text, cut_texts, joins, middle_losses, rates_by_distance

__all__ = ["fit"]
END = 12
MARKS = Sentinels(13, 14, 15, END)
TEXTS = [Text([1, 2, 3], [4, 5], [6, 7, 8]), Text([5], [1, 1, 1, 2], []), Text([9, 9], [3], [2, 2])]


@pytest.mark.parametrize(("order", "begin"), [("psm", []), ("spm", []), ("spm", [10, 11])])
@pytest.mark.parametrize("n_future", [1, 3])
def test_losses_against_ones_written_out(
    make_model: Callable[..., MTPModel], n_future: int, order: Order, begin: list[int]
) -> None:
    model = make_model(n_future)
    found = middle_losses(model, TEXTS, Asking(MARKS, order, begin))
    nats: dict[str, list[float]] = {name: [] for name in (*model.heads_config.loss_names, "plain")}
    for text in TEXTS:
        asked = [*begin, *infilling_prompt(text.prefix, text.suffix, MARKS, order)]
        for name, before in (("infilled", asked), ("plain", [*begin, *text.prefix])):
            tokens = torch.tensor([[*before, *text.middle, END, *[0] * n_future]])
            T = tokens.shape[1] - n_future
            ahead = torch.stack([tokens[:, 1 + i : 1 + i + T] for i in range(n_future)])
            logits = model.unembedding(model(tokens[:, :T], None, ahead)).log_softmax(-1)
            for i in range(n_future):
                for place in range(len(before), len(before) + len(text.middle)):
                    position = place - i - 1
                    if position < 0 or {13, 14, 15} & {*tokens[0, position + 1 : place].tolist()}:
                        continue  # a sentinel would lie between
                    nll = -logits[i, 0, position, tokens[0, place]].item()
                    if name == "infilled":
                        nats[f"head_{i + 1}"].append(nll)
                    elif i == 0:
                        nats["plain"].append(nll)
    means = {name: np.mean(values) for name, values in nats.items()}
    for name in model.heads_config.loss_names:
        assert found[name] == pytest.approx(means[name], rel=1e-5)
    assert found["suffix_worth"] == pytest.approx(means["plain"] - means["head_1"], rel=1e-4, abs=1e-6)


def test_rates_by_distance_by_hand() -> None:
    def out(*lengths: int) -> Generation:
        steps = [Step(0, [1] * length, [1] * length) for length in lengths]
        return Generation([1] * sum(lengths), steps)

    assert rates_by_distance([out(4, 4, 2)]) == {"last_8": 3.0, "last_32": 4.0}  # begin at 10, 6 and 2 from the end
    assert rates_by_distance([out(3, 29, 3), out(2)]) == {"before": 3.0, "last_32": 29.0, "last_8": 2.5}
    assert rates_by_distance([]) == {}


def test_a_model_that_knows_nothing_does_not_join(make_model: Callable[..., MTPModel]) -> None:
    found = joins(Engine(make_model(2), dtype=torch.float32), TEXTS, Asking(MARKS), [2] * 99)
    assert found["exact"] == 0
    assert 1 <= found["tokens_per_forward"] <= 2
    assert found["bytes_per_forward"] == 2 * found["tokens_per_forward"]


def test_texts_are_cut_as_their_numbers_say() -> None:
    tokenizer = ByteTokenizer(infilling=True)
    pieces = [torch.tensor(tokenizer.encode("Straße 🙂 und so weiter")) for _ in range(40)]
    texts = cut_texts(pieces, tokenizer)
    assert texts == cut_texts(pieces, tokenizer)
    assert 20 < len(texts) <= 40
    for text in texts:
        assert [*text.prefix, *text.middle, *text.suffix] == pieces[0].tolist()
        assert text.prefix
        assert text.middle
        assert all(bytes(part).decode() is not None for part in text)
    assert len({len(text.prefix) for text in texts}) > 5
    crossing = [torch.tensor([*tokenizer.encode("one of two"), 255, *tokenizer.encode("another")])] * 20
    assert {bytes([*t.prefix, *t.middle, *t.suffix]) for t in cut_texts(crossing, tokenizer)} == {b"one of two"}
    assert cut_texts([torch.tensor([255, 97, 98, 99])], tokenizer) == []


DOCUMENTS = ("abcdefghijkl", "tsrqponmlkji")


@pytest.mark.slow
@pytest.mark.usefixtures("shapes_unchecked")
def test_a_model_that_knows_its_texts_fills_them_in() -> None:
    tokenizer, T, n = ByteTokenizer(infilling=True), 16, 2
    transform = WindowTransform(InfillingConfig(1.0), tokenizer, T, seed=0)
    tokens = [np.array([*tokenizer.encode(text), 255, *[97] * 19]) for text in DOCUMENTS]
    documents = np.array([0] * 13 + [1] * 19, dtype=np.int32)
    torch.manual_seed(0)
    backbone = tiny_backbone(vocab_size=259, dim=48, n_layers=3, n_heads=4, ffn_dim=128, attend_across_documents=False)
    model = MTPModel(backbone, HeadsConfig(n_future=n))
    optimizer = torch.optim.AdamW(model.parameters())
    steps, rows = 400, 32
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 4e-3 * min(1, (step + 1) / 20) * max(0.05, 1 - step / steps)
        samples = range(step * rows, (step + 1) * rows)
        made = [transform(sample, tokens[sample % 2], documents) for sample in samples]
        window, owner = (torch.tensor(np.stack(parts)[:, : T + n]) for parts in zip(*made))
        loss = model_loss(model, make_targets(model.heads_config, window, owner), owner[:, :T]).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    texts = cut_texts([torch.tensor(tokenizer.encode(text)) for text in DOCUMENTS * 10], tokenizer)
    assert len(texts) > 10
    orders: tuple[Order, ...] = ("psm", "spm")
    for order in orders:
        asking = Asking(needed_sentinels(tokenizer), order)
        found = joins(Engine(model, dtype=torch.float32), texts, asking, [1] * 255)
        assert (found["joined"], found["exact"]) == (1.0, 1.0), order
        assert found["tokens_per_forward"] > 1.8


def test_the_probe_says_what_it_should(fit: Fit, tmp_path: Path) -> None:
    source = SourceConfig(kind="stories", max_documents=40)
    data = TokenDataModule(
        source, context=48, batch_size=2, horizon=2, vocab_size=259, validation_fraction=0.5, val_windows=2,
        directory=str(tmp_path), infilling=InfillingConfig(0.5, cross_sentinels=False),
    )  # fmt: skip
    _, _, recorder = fit([InfillingProbe(texts=6, validation_texts=3)], data=data, val_check_interval=6)
    for name in ("loss/head_1", "loss/head_2", "suffix_worth", "joined", "exact", "tokens_per_forward"):
        assert recorder.steps(f"val/infilling/{name}") == [6, 12], name
    assert 3 < recorder.last_by_step("val/infilling/loss/head_1")[12]["val/infilling/loss/head_1"] < 7


@pytest.mark.parametrize(("spm", "order"), [(0.5, "psm"), (1.0, "spm")])
def test_the_probe_asks_as_is_trained(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spm: float, order: Order
) -> None:
    """In the order that most middles are trained in, after what all texts began with, in a window's room."""
    source = SourceConfig(kind="stories", max_documents=40)
    data = TokenDataModule(
        source, context=48, batch_size=2, horizon=2, vocab_size=259, validation_fraction=0.5, val_windows=2,
        directory=str(tmp_path), infilling=InfillingConfig(0.5, spm),
    )  # fmt: skip
    monkeypatch.setattr(TokenDataModule, "begin_ids", [7, 9])
    seen = list[list[int]]()

    def joins(_: Engine, texts: list[Text], asking: Asking, __: object) -> dict[str, float]:
        for text in texts:
            seen.append(asking.prompt(text))
            assert seen[-1] == [7, 9, *infilling_prompt(text.prefix, text.suffix, asking.marks, order)]
            assert len(seen[-1]) + len(text.middle) + 1 <= 48
        return {}

    monkeypatch.setattr("callbacks.infilling.joins", joins)
    fit([InfillingProbe(texts=3, validation_texts=3)], data=data)
    assert seen


def test_without_infilling_it_asks_nothing(fit: Fit, tmp_path: Path) -> None:
    _, _, recorder = fit([InfillingProbe()])
    assert not recorder.last_by_step("val/infilling")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    model = MTPModel(tiny_backbone(vocab_size=259, n_layers=3), HeadsConfig(n_future=2))
    return str(save(tmp_path_factory.mktemp("model") / "m.safetensors", model, ByteTokenizer(infilling=True)))


@pytest.mark.parametrize("mode", ["psm", "spm"])
def test_generate_writes_between(
    checkpoint: str, mode: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    flags = ["--prefix", "Zoë(", "--suffix", ") 🙂", "--mode", mode, "--max_new_tokens", "9", "--json", str(out)]
    assert main(["generate", checkpoint, *flags]) == 0
    found, said = json.loads(out.read_text()), capsys.readouterr()
    assert said.out == f"Zoë({found['text']}) 🙂\n"
    assert found["joined"] == (found["ids"][-1] == 255)
    assert ("it does not join the suffix" in said.err) == (not found["joined"])


@pytest.mark.parametrize("mode", ["psm", "spm"])
@pytest.mark.parametrize("before", ["", "def f(x):\n"])
@pytest.mark.parametrize("joins", [True, False])
def test_generate_with_a_space_before_every_text(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    mode: Order,
    before: str,
    joins: bool,
) -> None:
    """What a model such as Code Llama is shown and writes; the end of a document is no join, where a middle has an end
    of its own."""
    tokenizer = spaced()
    model = MTPModel(tiny_backbone(vocab_size=tokenizer.vocab_size), HeadsConfig(n_future=1))
    path, out = str(save(tmp_path / "m.safetensors", model, tokenizer)), tmp_path / "out.json"
    marks, asked = needed_sentinels(tokenizer), list[int]()
    middle = tokenizer.encode(f"{before}    y = x")[len(tokenizer.encode(before)) :]

    def writes(_: Engine, prompts: list[torch.Tensor], *__: object) -> Iterator[Step]:
        asked.extend(prompts[0].tolist())
        yield from (Step(0, [token], [token]) for token in [*middle, marks.end if joins else tokenizer.eos_id])

    monkeypatch.setattr("mtp_lightning.decoding.generate.stream", writes)
    flags = ["--prefix", before, "--suffix", "\n    return y", "--mode", mode, "--json", str(out)]
    assert main(["generate", path, *flags]) == 0
    assert capsys.readouterr().out == f"{before}    y = x\n    return y\n"
    assert json.loads(out.read_text())["joined"] == joins
    suffix = tokenizer.encode("x\n    return y")[2:]
    assert asked == infilling_prompt(tokenizer.encode(before), suffix, marks, mode)


WRONG = {
    "both": (["--prompt", "a", "--suffix", "b"], "leave one of them out"),
    "neither": ([], "--prompt is missing"),
}


@pytest.mark.parametrize(("flags", "says"), WRONG.values(), ids=WRONG)
def test_what_does_not_go_together(
    checkpoint: str, flags: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", checkpoint, *flags]) == 2
    assert says in capsys.readouterr().err


def test_a_model_without_sentinels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = MTPModel(tiny_backbone(vocab_size=256), HeadsConfig(n_future=1))
    source = str(save(tmp_path / "m.safetensors", plain, ByteTokenizer()))
    assert main(["generate", source, "--prefix", "a", "--suffix", "b"]) == 2
    assert "train it with data.infilling, or continue a --prompt" in capsys.readouterr().err
