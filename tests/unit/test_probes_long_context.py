"""Long contexts: bins that add up to the whole loss, keys that lie where they should, and a model that copies."""

import math
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from spaced import spaced
from test_callbacks_training import Fit, fit
from tiny import VARIANTS, tiny_backbone
from torch import Tensor, nn
from typing_extensions import override

from callbacks.long_context import LongContextProbe
from mtp_lightning.data.corpora.source import SourceConfig
from mtp_lightning.data.mixtures.sources import MixtureSource
from mtp_lightning.data.tasks.task import Examples
from mtp_lightning.data.tokenizers.training import train_bpe
from mtp_lightning.data.tokens.datamodule import TokenDataModule
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer, HuggingFaceTokenizer, Tokenizer
from mtp_lightning.decoding.engine import Engine
from mtp_lightning.errors import InputError
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel, Unembedding
from mtp_lightning.module import MTPModule
from mtp_lightning.objective.heads import model_scores, scores_by_position
from mtp_lightning.objective.targets import make_targets
from mtp_lightning.probes.exact_match import Answers
from mtp_lightning.probes.long_context import bins, key_questions, losses_by_position, rates, retrieval
from mtp_lightning.probes.pictures import retrieval_map

__all__ = ["fit"]
BYTES = ByteTokenizer()


def test_bins_double() -> None:
    assert bins(1024) == [0, 64, 128, 256, 512, 1024]
    assert bins(1000) == [0, 64, 128, 256, 512, 1000]
    assert bins(64) == [0, 64]
    assert bins(9) == [0, 9]


@pytest.mark.parametrize("heads", VARIANTS.values(), ids=VARIANTS)
def test_the_parts_add_up_to_the_whole(heads: HeadsConfig) -> None:
    torch.manual_seed(0)
    model = MTPModel(tiny_backbone(n_layers=7), heads).eval()
    targets = make_targets(heads, torch.randint(16, (2, 30)), torch.arange(60).reshape(2, 30) // 7)
    whole = model_scores(model, targets)
    parts = scores_by_position(model, targets, [0, 4, 5, 17, targets.inputs.shape[1]])
    assert len(parts) == 4
    for field in ("nll", "correct", "n_valid"):
        total = torch.stack([getattr(part, field) for part in parts]).sum(0)
        torch.testing.assert_close(total, getattr(whole, field))


def test_losses_by_position_are_those_of_the_positions(make_model: Callable[..., MTPModel]) -> None:
    model, texts = make_model(2), list(torch.randint(16, (3, 152)))
    found = losses_by_position(model, texts)
    assert [name for name in found if name.endswith("head_1")] == [
        "0_to_63/head_1", "64_to_127/head_1", "128_to_149/head_1",
    ]  # fmt: skip
    sizes = {"0_to_63": 64, "64_to_127": 64, "128_to_149": 22}
    for i, name in enumerate(("head_1", "head_2")):
        whole = [model_scores(model, make_targets(model.heads_config, text[None])).nll[i].item() for text in texts]
        assert sum(found[f"{part}/{name}"] * size for part, size in sizes.items()) == pytest.approx(sum(whole) / 3)
    with torch.no_grad():
        logits = torch.stack([model.unembedding(model.next_token_states(text[None, :150]))[0] for text in texts])
    losses = nn.functional.cross_entropy(logits[:, 64:128].flatten(0, 1), torch.stack(texts)[:, 65:129].flatten())
    assert found["64_to_127/head_1"] == pytest.approx(losses.item(), rel=1e-5)


def bpe() -> Tokenizer:
    lines = [f"def name{i}(x): return x + {i * 37}\n" for i in range(50)]
    return HuggingFaceTokenizer(train_bpe(iter(lines), 300))


@pytest.mark.parametrize("tokenizer", [BYTES, bpe()], ids=["bytes", "BPE"])
@pytest.mark.parametrize("length", [60, 97, 400])
def test_keys_lie_where_they_should(tokenizer: Tokenizer, length: int) -> None:
    for depth in (0.0, 0.5, 1.0):
        asked = key_questions(tokenizer, length, depth, 5)
        assert asked.answer_starts.tolist() == [length] * 5  # exactly the length asked for
        for row, start, stop in zip(asked.tokens, asked.answer_starts, asked.lengths):
            text, answer = tokenizer.decode(row[:start].tolist()), tokenizer.decode(row[start:stop].tolist())
            space: dict[str, Any] = {}
            exec(text.rpartition("assert ")[0], space)  # valid Python of our own making
            question = text.rpartition("assert ")[2].removesuffix(" ==")
            assert eval(question, space) == int(answer)
            assert 10**4 <= int(answer) < 10**5
            place = text.index(f"def {question.removesuffix('()')}()") / len(text)
            assert abs(place - depth) < (0.8 if length < 100 else 0.15), (place, depth)
    again = key_questions(tokenizer, length, 0.5, 5)
    assert again.tokens.tolist() == key_questions(tokenizer, length, 0.5, 5).tokens.tolist()
    assert len({tuple(row) for row in again.tokens.tolist()}) == 5


def test_no_line_begins_with_a_space_of_the_tokenizer() -> None:
    """Of such as Llama 2's, which put one before every text: lines and answers have the tokens of the whole."""
    tokenizer, length = spaced(), 150
    plain = key_questions(tokenizer, length, 0.5, 3)
    asked = key_questions(tokenizer, length + 1, 0.5, 3, begin=[1])
    assert asked.answer_starts.tolist() == [length + 1] * 3
    for row, start, stop in zip(asked.tokens, asked.answer_starts, asked.lengths):
        text = tokenizer.decode(row[:stop].tolist())
        assert row[0] == 1
        assert re.fullmatch(r"(def .*\n+)+assert [a-z]{6}\(\) == \d{5}", text)
        assert tokenizer.encode(f"\n{text}")[-100:] == row[stop - 100 : stop].tolist()
        assert stop - start == 6
    assert [len(row) for row in plain.tokens] == [length + 6] * 3


def test_a_length_without_room_is_refused() -> None:
    with pytest.raises(InputError, match=r"^lengths has 40: a key and its question take 4\d tokens"):
        key_questions(BYTES, 40, 0.5, 1)


class Copies(MTPModel):
    """After `assert name() ==` it writes what stood between `return` and the end of the line where `def name()` is."""

    @override
    def next_token_states(self, tokens_BT: Tensor) -> Tensor:  # type: ignore[override]
        states = torch.zeros(*tokens_BT.shape, 256)
        for row, tokens in enumerate(tokens_BT.tolist()):
            text = bytes(tokens).decode()
            question = text.rindex("assert ")
            name = text[question + 7 : text.index("(", question)]
            start = text.index(f"def {name}() : return".replace(") :", "):"))
            answer = text[text.index("return", start) + 6 : text.index("\n", start)]
            end = text.index("==", question) + 2
            for i, character in enumerate(answer):
                if end - 1 + i < len(tokens):
                    states[row, end - 1 + i, ord(character)] = 1.0
        return states


def test_retrieval_of_a_model_that_copies_and_of_one_that_does_not() -> None:
    torch.manual_seed(0)
    backbone = tiny_backbone(vocab_size=256, n_layers=2)
    copies = Copies(backbone, HeadsConfig(n_future=1))
    copies.unembedding = Unembedding(256, 256, std=1.0)
    nn.init.eye_(copies.unembedding.weight)
    found = retrieval(copies, BYTES, [80, 300], [0.0, 0.3, 1.0], 4)
    assert found == {(length, depth): 1.0 for length in (80, 300) for depth in (0.0, 0.3, 1.0)}
    random = retrieval(MTPModel(backbone, HeadsConfig(n_future=1)).eval(), BYTES, [80], [0.5], 8)
    assert random == {(80, 0.5): 0.0}
    assert retrieval_map(found, "keys").startswith(b"\x89PNG")


def test_the_rate_is_that_of_the_steps(make_model: Callable[..., MTPModel]) -> None:
    engine = Engine(make_model(1), dtype=torch.float32)
    assert rates(engine, list(torch.randint(16, (2, 20))), 8, [3] * 16) == (1.0, 3.0)


def text_data(tmp_path: Path, **changes: Any) -> TokenDataModule:
    settings: dict[str, Any] = {"context": 64, "batch_size": 2, "horizon": 2, "val_windows": 2} | changes
    source = SourceConfig(kind="stories", max_documents=40)
    return TokenDataModule(source, validation_fraction=0.5, directory=str(tmp_path), **settings)


def test_the_probe_says_what_it_should(fit: Fit, tmp_path: Path) -> None:
    probe = LongContextProbe(lengths=[96, 160], depths=[0.0, 1.0], keys=2, texts=2, prompts=1, new_tokens=6)
    trainer, _, recorder = fit([probe], data=text_data(tmp_path))
    found = recorder.last_by_step("probe/long_context/")
    assert list(found) == [12]
    names = [name.removeprefix("probe/long_context/") for name in found[12]]
    assert [name for name in names if name.startswith("loss") and name.endswith("head_2")] == [
        "loss/0_to_63/head_2", "loss/64_to_127/head_2", "loss/128_to_159/head_2",
    ]  # fmt: skip
    for length in (96, 160):
        assert {f"retrieval/length_{length}", f"retrieval/length_{length}/depth_0"} <= {*names}
        for prefix in ("", "exact_drafts/"):
            assert found[12][f"probe/long_context/{prefix}tokens_per_forward/length_{length}"] >= 1
            assert f"probe/long_context/{prefix}bytes_per_forward/length_{length}" in found[12]
    assert all(math.isfinite(value) for value in found[12].values())
    picture = Path(trainer.default_root_dir) / "pictures/long_context/step-00000012.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def started(data: TokenDataModule, n_future: int = 1, **settings: Any) -> tuple[LongContextProbe, pl.Trainer]:
    """A probe before the first step of a run, and its trainer."""
    probe = LongContextProbe(**{"lengths": [96, 160]} | settings)
    data.prepare_data()
    data.setup("validate")
    module = MTPModule(tiny_backbone(vocab_size=256, n_layers=5), HeadsConfig(n_future=n_future))
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.datamodule = data  # type: ignore[attr-defined]
    probe.on_fit_start(trainer, module)
    return probe, trainer


def test_with_pairs_alone_there_is_nothing_to_ask(tmp_path: Path) -> None:
    source = SourceConfig(kind="story_pairs", max_documents=40)
    probe, trainer = started(TokenDataModule(source, context=1200, directory=str(tmp_path)), lengths=[40])
    assert not probe.is_ready(trainer)


def test_of_a_mixture_all_sources_are_read(tmp_path: Path) -> None:
    folders = []
    for letter in "xy":
        folders.append(tmp_path / letter)
        folders[-1].mkdir()
        for number in range(20):
            (folders[-1] / f"{number}.txt").write_text(letter * 300)
    mixture = [MixtureSource(SourceConfig(kind="text", path=str(folder))) for folder in folders]
    data = TokenDataModule(mixture=mixture, context=16, validation_fraction=0.5, directory=str(tmp_path))
    probe, _ = started(data, prompts=2, texts=4)
    assert [chr(text[9]) for text in probe._heldout] == ["x", "y"] * 2


def test_keys_come_after_what_all_texts_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TokenDataModule, "begin_ids", [7, 9])
    probe, trainer = started(text_data(tmp_path), n_future=2, keys=2, texts=1, prompts=1, new_tokens=2, depths=[0.5])
    seen: list[Examples] = []

    def answer(_: MTPModel, asked: Examples) -> Answers:
        seen.append(asked)
        return Answers(torch.ones(1, 1, dtype=torch.bool))

    monkeypatch.setattr("mtp_lightning.probes.long_context.answer", answer)
    monkeypatch.setattr(LongContextProbe, "save_picture", lambda *_: None)
    probe.measure(trainer, MTPModel(tiny_backbone(vocab_size=256, n_layers=5), HeadsConfig(n_future=2)).eval(), False)
    assert [asked.tokens[:, :2].tolist() for asked in seen] == [[[7, 9]] * 2] * 2
    assert [asked.answer_starts.tolist() for asked in seen] == [[96] * 2, [160] * 2]


def test_every_n_reads_the_same_texts(tmp_path: Path) -> None:
    read = []
    for n_future in (1, 4):
        probe, _ = started(text_data(tmp_path, horizon=n_future), n_future)
        assert {len(text) for text in probe._heldout} == {160 + n_future}
        read.append([text[:161].tolist() for text in probe._heldout])
    assert read[0] == read[1]


def test_texts_that_are_too_short_are_refused_before_training(fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lengths has 9000: the longest validation document has \d+ tokens, and 9016"):
        fit([LongContextProbe(lengths=[9000])], data=text_data(tmp_path))
    with pytest.raises(InputError, match=r"^LongContextProbe.lengths has 40: a key and its question"):
        fit([LongContextProbe(lengths=[40])], data=text_data(tmp_path))
    fit([LongContextProbe()])  # data that are no text: nothing to ask


def test_keys_of_which_some_alone_are_too_long_are_refused_before_training(tmp_path: Path) -> None:
    """Where words are tokens, keys have different lengths."""
    names = ("".join(Random(i).choices("abcdefghijklmnopqrstuvwxyz", k=6)) for i in range(300))
    tokenizer = HuggingFaceTokenizer(train_bpe((f"def {name}(): return 1\n" for name in names), 500))
    (tmp_path / "tokenizer.json").write_text(tokenizer.state()["json"])

    def fit(length: int, depth: float, count: int) -> bool:
        with suppress(InputError):
            return len(key_questions(tokenizer, length, depth, count).tokens) == count
        return False

    cases = ((length, i / 20) for length in range(20, 40) for i in range(21))
    length, depth = next(case for case in cases if fit(case[0], 0.0, 2) and fit(*case, 1) and not fit(*case, 2))
    data = text_data(tmp_path, tokenizer=str(tmp_path / "tokenizer.json"), vocab_size=tokenizer.vocab_size)
    with pytest.raises(InputError, match=f"^LongContextProbe.lengths has {length}: a key and its question take"):
        started(data, lengths=[length], depths=[0.0, depth], keys=2)


@pytest.mark.parametrize("wrong", [{"lengths": [0]}, {"depths": [1.5]}, {"lengths": []}, {"keys": 0}])
def test_bad_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"LongContextProbe.{next(iter(wrong))} is "):
        LongContextProbe(**wrong)
