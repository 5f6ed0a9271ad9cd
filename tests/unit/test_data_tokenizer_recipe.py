"""A tokenizer that the configuration describes: trained once on the training documents, never while one only plans."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtp_lightning.data.corpora.source import SourceConfig
from mtp_lightning.data.mixtures.sources import MixtureSource
from mtp_lightning.data.preparing.chunks import split_position
from mtp_lightning.data.tokenizers.recipe import TokenizerRecipe, TrainedTokenizer, made_once
from mtp_lightning.data.tokenizers.training import mixed_texts, train_bpe
from mtp_lightning.data.tokens.datamodule import TokenDataModule
from mtp_lightning.data.tokens.prepare import ShardSettings, prepare_source
from mtp_lightning.data.tokens.store import TokenStore
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer, tokenizer_from_state
from mtp_lightning.data.transforms.infilling import NAMES, InfillingConfig, Sentinels, WindowTransform, sentinels
from mtp_lightning.errors import InputError

LINES = {
    name: [f"def {name}_{i}(value): return {word}_{i % 7}(value) * {i}" for i in range(90)]
    for name, word in (("a", "other"), ("b", "window"))
}


@pytest.fixture
def corpus(tmp_path: Path) -> SourceConfig:
    for name, lines in LINES.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    return SourceConfig("text", str(tmp_path / "a.txt"), separator="\\n")


def module(corpus: SourceConfig, recipe: TokenizerRecipe, **changes: Any) -> TokenDataModule:
    folder = Path(corpus.path or "").parent / "cache"
    settings = {"context": 16, "validation_fraction": 0.3, "vocab_size": recipe.vocab_size} | changes
    return TokenDataModule(source=corpus, tokenizer=TrainedTokenizer(recipe), directory=str(folder), **settings)


def kept(corpus: SourceConfig) -> list[Path]:
    return sorted((Path(corpus.path or "").parent / "cache/tokenizers").glob("*.json"))


def test_it_is_trained_on_the_training_documents_when_they_are_prepared(corpus: SourceConfig) -> None:
    validates = [split_position(f"a.txt#{i}", 0) < 0.3 for i in range(90)]
    lines = ["zz " * 60 if held_out else line for line, held_out in zip(LINES["a"], validates)]
    Path(corpus.path or "").write_text("\n".join(lines))
    data = module(corpus, TokenizerRecipe(270, "gpt4", "single"))
    assert kept(corpus) == [], "made, and nothing written"
    data.prepare_data()
    data.setup("validate")
    (file,) = kept(corpus)
    training = [line for line, held_out in zip(lines, validates) if not held_out]
    assert 0 < len(training) == data.train_store.split_meta.n_documents < 90, "the names of documents are as they were"
    assert file.read_text() == train_bpe(iter(training), 270, "gpt4", "single")
    assert data.tokenizer is data.text_tokenizer
    assert data.text_tokenizer.vocab_size == 270
    assert tokenizer_from_state(data.state_dict()["tokenizer"]).fingerprint == data.text_tokenizer.fingerprint


@pytest.mark.parametrize("fraction", [0.05, 0.95])
def test_of_a_few_documents_it_reads_those_that_shards_train_on(corpus: SourceConfig, fraction: float) -> None:
    """Where chance would leave a side empty, shards give it a document."""
    Path(corpus.path or "").write_text("\n".join(LINES["a"][:10]))
    places = [[split_position(f"a.txt#{i}", seed) for i in range(10)] for seed in range(8)]
    assert any(min(of) >= 0.05 for of in places)
    assert any(max(of) < 0.95 for of in places)
    for seed in range(8):
        settings = ShardSettings(fraction, seed)
        folder = Path(corpus.path or "").parent / f"{seed}"
        prepare_source(folder, corpus, ByteTokenizer(), settings)
        store = TokenStore(folder, "train")
        trained = bytes(store.read(0, len(store)).tolist()).split(b"\xff")[:-1]
        assert [text.encode() for text in mixed_texts([MixtureSource(corpus)], None, fraction, seed)] == trained


def test_one_document_cannot_be_on_both_sides(corpus: SourceConfig) -> None:
    Path(corpus.path or "").write_text(LINES["a"][0])
    with pytest.raises(InputError, match="only one document"):
        made_once(TokenizerRecipe(270), [MixtureSource(corpus)], Path(corpus.path or "").parent, ShardSettings())


def test_another_recipe_or_corpus_is_another_tokenizer_and_the_same_is_kept(corpus: SourceConfig) -> None:
    recipe = TokenizerRecipe(270)
    first = module(corpus, recipe)
    first.prepare_data()
    (file,) = kept(corpus)
    before = file.stat().st_mtime_ns
    again = module(corpus, recipe, context=32)
    again.prepare_data()
    assert again.shards == first.shards
    assert [path.stat().st_mtime_ns for path in kept(corpus)] == [before]
    others = [
        module(corpus, TokenizerRecipe(268)),
        module(corpus, TokenizerRecipe(270, "punct")),
        module(corpus, TokenizerRecipe(270, digits="single")),
        module(corpus, TokenizerRecipe(270, max_documents=30)),
        module(corpus, recipe, split_seed=1),
    ]
    for data in others:
        data.prepare_data()
    assert len(kept(corpus)) == 1 + len(others)
    Path(corpus.path or "").write_text("\n".join(LINES["b"]))
    module(corpus, recipe).prepare_data()
    assert len(kept(corpus)) == 2 + len(others)


def test_of_a_mixture_the_weights_count(corpus: SourceConfig) -> None:
    b = SourceConfig("text", str(Path(corpus.path or "").with_name("b.txt")), separator="\\n")
    folder, settings = Path(corpus.path or "").parent / "made", ShardSettings(0.3)
    made = [
        made_once(TokenizerRecipe(285), [MixtureSource(corpus, weight=w), MixtureSource(b)], folder, settings)
        for w in (1.0, 0.02)
    ]
    assert made[0].fingerprint != made[1].fingerprint


def test_many_at_once_train_it_once(corpus: SourceConfig, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(corpus.path or "").parent / "made"
    arguments = (TokenizerRecipe(270), [MixtureSource(corpus)], folder, ShardSettings(0.3))
    threads = [threading.Thread(target=made_once, args=arguments) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert capsys.readouterr().err.count("training a tokenizer") == 1
    assert json.loads(next(folder.glob("*.json")).read_text())["model"]["type"] == "BPE"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"vocab_size": 256},
            r"model.backbone.vocab_size is 256, and data.tokenizer.train.vocab_size 270: set .*\$\{data",
        ),
        ({"end_token": "</s>"}, "data.end_token: a tokenizer that is trained has its own"),
        ({"infilling": InfillingConfig(rate=0.5)}, "data.infilling: .* set data.tokenizer.train.infilling"),
        ({"source": SourceConfig("shards", "here")}, "data.tokenizer.train needs text, and 'here' holds shards"),
    ],
)
def test_what_does_not_go_together(corpus: SourceConfig, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        module(changes.pop("source", corpus), TokenizerRecipe(270), **changes)


def test_epochs_are_refused_before_anything_is_read(corpus: SourceConfig) -> None:
    mixture = [MixtureSource(corpus, epochs=1.0)]
    with pytest.raises(InputError, match=r"data.tokenizer.train: 'a' of data.mixture has epochs"):
        TokenDataModule(tokenizer=TrainedTokenizer(TokenizerRecipe(270)), vocab_size=270, mixture=mixture)


def test_more_tokens_than_the_texts_give(corpus: SourceConfig) -> None:
    data = module(corpus, TokenizerRecipe(2000))
    with pytest.raises(InputError, match=r"vocab_size is 2000, and the texts give \d+ tokens: set it to that or less"):
        data.prepare_data()
    assert kept(corpus) == []


def test_rows_may_be_padded(corpus: SourceConfig) -> None:
    data = module(corpus, TokenizerRecipe(270), vocab_size=320)
    data.prepare_data()
    assert data.text_tokenizer.vocab_size == 270


def test_a_recipe_has_the_tokens_of_infilling_that_it_names(corpus: SourceConfig) -> None:
    """They count in its size, no text can write them, and windows are made with them."""
    recipe = TokenizerRecipe(280, infilling="codellama")
    data = module(corpus, recipe, infilling=InfillingConfig(1.0))
    data.prepare_data()
    data.setup("fit")
    tokenizer = data.text_tokenizer
    marks = sentinels(tokenizer)
    assert marks == Sentinels(1, 2, 3, 4)
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (280, 0)
    assert not {*marks} & {*tokenizer.encode("".join(NAMES["codellama"]) + "def f")}
    transform = WindowTransform(InfillingConfig(1.0), tokenizer, 48, seed=0)
    window = np.array([*tokenizer.encode("def f(value): return value") * 9])
    made, _ = transform(0, window, np.zeros_like(window))
    assert {*marks} <= {*made.tolist()}


def test_a_size_without_room_for_them_is_refused() -> None:
    with pytest.raises(InputError, match=r"data.tokenizer.train.vocab_size is 259: it has to be at least 260"):
        TokenizerRecipe(259, infilling="starcoder")
