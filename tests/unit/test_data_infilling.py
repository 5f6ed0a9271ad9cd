"""Infilling: parts joined again are the text, how often it is done, and that the sample's number alone decides it."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from test_data_module import Recorder, module, ready, same, stories, trainer

from mtp_lightning.data import SourceConfig
from mtp_lightning.data.mixtures.sources import MixtureSource
from mtp_lightning.data.tokens.prepare import ShardSettings, prepare_source
from mtp_lightning.data.tokens.samples import read_prompts
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer, HuggingFaceTokenizer, Tokenizer, tokenizer_from_state
from mtp_lightning.data.tokens.windows import HORIZON_RESERVE
from mtp_lightning.data.transforms.infilled_store import InfilledStore
from mtp_lightning.data.transforms.infilling import InfillingConfig, WindowTransform, sentinels
from mtp_lightning.errors import InputError
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.objective.targets import SENTINELS, make_targets

__all__ = ["stories"]
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
BYTES = ByteTokenizer(infilling=True)
PRE, SUF, MID = BYTES.sentinel_ids
EOS = BYTES.eos_id
ALWAYS = InfillingConfig(rate=1.0)
LEVELS = ["context", "document"]


def window(texts: list[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """The beginning of a corpus: tokens and document ids."""
    found = [[*BYTES.encode(text), EOS] for text in texts]
    documents = [number for number, tokens in enumerate(found) for _ in tokens]
    tokens = np.array([token for part in found for token in part], dtype=np.int64)
    return tokens[:length], np.array(documents[:length], dtype=np.int32)


def split(tokens: list[int]) -> tuple[str, list[int], list[int], list[int]]:
    """(order, prefix with a middle of spm, middle of psm, suffix) of what begins with PRE and ends with the end."""
    suffix, middle = tokens.index(SUF), tokens.index(MID)
    if suffix == 1:
        return "spm", tokens[middle + 1 : -1], [], tokens[2:middle]
    return "psm", tokens[1:suffix], tokens[middle + 1 : -1], tokens[suffix + 1 : middle]


def joined(made: list[int], raw: list[int]) -> tuple[list[int], list[str]]:
    """What a transformed window was before, and the orders of its parts."""
    text: list[int] = []
    orders: list[str] = []
    while made:
        if made[0] != PRE:
            text.append(made.pop(0))
            continue
        stop = made.index(EOS) + 1
        order, prefix, middle, suffix = split(made[:stop])
        made = made[stop:]
        orders.append(order)
        text += prefix + middle + suffix
        text += [EOS] if raw[len(text) : len(text) + 1] == [EOS] else []
    return text, orders


@given(st.lists(st.text(max_size=40), min_size=1, max_size=6), st.integers(8, 60), st.integers(0, 10**6), st.data())
def test_the_parts_joined_are_the_text(texts: list[str], context: int, sample: int, data: st.DataObject) -> None:
    length = context + HORIZON_RESERVE
    tokens, documents = window(texts * (length // len(texts) + 1), length)
    assume(len(tokens) == length)
    config = InfillingConfig(rate=data.draw(st.sampled_from([0.0, 0.5, 1.0])), spm=data.draw(st.floats(0, 1)))
    made, owners = WindowTransform(config, BYTES, context, seed=3)(sample, tokens, documents)
    assert len(made) == len(owners) == length
    assert owners.dtype == np.int32
    text, _ = joined(made[: context + 1].tolist(), tokens.tolist())
    assert text == tokens[: len(text)].tolist()
    n_new = int(np.isin(made[: context + 1], (PRE, SUF, MID)).sum())
    assert context + 1 - len(text) >= n_new  # nothing was left out but for what the new tokens took the room of
    borders = np.flatnonzero(np.diff(owners[: context + 1]))
    assert all(made[border] == EOS for border in borders)  # a document ends with its end, its middle's or its own
    rest = made[context + 1 :].tolist()
    assert any(rest == tokens[i : i + len(rest)].tolist() for i in (len(text), len(text) - 1))


@given(st.text(min_size=3), st.integers(0, 10**6))
def test_no_character_is_cut(text: str, sample: int) -> None:
    tokens, documents = window([text], 10**6)
    made, _ = WindowTransform(InfillingConfig(1.0, spm=0.0), BYTES, len(tokens) + 3, seed=0)(
        sample, np.append(tokens, np.zeros(HORIZON_RESERVE + 3, dtype=np.int64)),
        np.append(documents, np.ones(HORIZON_RESERVE + 3, dtype=np.int32)),
    )  # fmt: skip
    _, *parts = split(made[: len(tokens) + 3].tolist())
    strict = [bytes(part).decode("utf-8") for part in parts]  # raises where a character was cut
    assert strict[0] + strict[1] + strict[2] == text.encode("utf-8", errors="replace").decode()


def test_the_example() -> None:
    tokens, documents = window(["abcdef", "ghijkl" * 9], 40)
    transform = WindowTransform(InfillingConfig(1.0, spm=0.0), BYTES, 24, seed=0)
    made, owners = transform(1, tokens, documents)
    order, *parts = split(made[:10].tolist())
    assert "".join(map(BYTES.decode, parts)) == "abcdef"
    assert order == "psm"
    assert made[10] == PRE
    assert made[24] == EOS  # the last input's target: what was cut to fit has its end, too
    assert owners[[9, 10, 24]].tolist() == [0, 1, 1]
    assert (owners[25:] == 2).all()  # no document that the window has
    assert made[25:].tolist() == tokens[7 + 11 :][: 40 - 25].tolist()


def test_rates_are_what_they_say() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(97, 123, 64 + HORIZON_RESERVE)
    documents = np.zeros(len(tokens), dtype=np.int32)
    transform = WindowTransform(InfillingConfig(rate=0.3, spm=0.25), BYTES, 64, seed=1)
    made = [transform(sample, tokens, documents)[0] for sample in range(4000)]
    n = [sum(int(row[0] == PRE) for row in made), sum(int(row[0] == PRE and row[1] == SUF) for row in made)]
    # An empty prefix in psm looks the same: 1 of 31 or so.
    assert abs(n[0] - 1200) < 4 * np.sqrt(4000 * 0.3 * 0.7)
    expected = 0.25 + 0.75 * 2 / 62
    assert abs(n[1] - expected * n[0]) < 4 * np.sqrt(n[0] * expected * (1 - expected))
    starts = [split(row[:65].tolist())[1:] for row in made if row[0] == PRE and row[1] != SUF]
    lengths = np.mean([[len(part) for part in parts] for parts in starts], axis=0)
    assert np.allclose(lengths, 61 / 3, atol=2)  # each a third on average


def test_the_end_of_a_text_is_kept_where_it_fits() -> None:
    tokens, documents = window(["abcdef"] * 20, 48 + HORIZON_RESERVE)
    for sample in range(50):
        made, owners = WindowTransform(ALWAYS, BYTES, 48, seed=0)(sample, tokens, documents)
        assert (made[:49] == EOS).sum() == (owners[:49].max() + 1) == 5


@pytest.mark.parametrize("spm", [0.0, 0.5, 1.0])
def test_documents_before_they_are_windows(stories: SourceConfig, tmp_path: Path, spm: float) -> None:
    store = ready(module(stories, tmp_path)).train_store
    made = InfilledStore(store, InfillingConfig(0.8, spm, level="document"), BYTES, seed=4)
    whole, owners = made.read(0, len(made)), made.document_ids(0, len(made))
    bounds = [*store.document_starts.tolist(), len(store)]
    orders = []
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        own, text = whole[owners == number].tolist(), store.read(start, stop - start).tolist()
        if own[0] == PRE:
            order, *parts = split(own)
            assert [*parts[0], *parts[1], *parts[2], EOS] == text
            assert all(bytes(part).decode() is not None for part in parts)  # no character is cut
            orders.append(order)
        else:
            assert own == text
    assert abs(len(orders) / len(bounds) - 0.8) < 0.2
    assert abs(orders.count("spm") / len(orders) - spm) < 0.25
    rng = np.random.default_rng(0)
    for _ in range(300):
        start = int(rng.integers(0, len(made)))
        length = int(rng.integers(1, min(len(made) - start, 300) + 1))
        assert made.read(start, length).tolist() == whole[start : start + length].tolist()
        assert made.document_ids(start, length).tolist() == owners[start : start + length].tolist()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mixed", [False, True], ids=["alone", "mixture"])
def test_all_heads_see_the_same_inputs(stories: SourceConfig, tmp_path: Path, mixed: bool, level: Any) -> None:
    shown = []
    parts = [
        MixtureSource(stories, weight=1.0, name="a"),
        MixtureSource(SourceConfig(kind="stories", max_documents=30)),
    ]
    for horizon in (1, 2, 8):
        more: dict[str, Any] = {"infilling": InfillingConfig(0.7, level=level), "vocab_size": 259, "horizon": horizon}
        source = SourceConfig() if mixed else stories
        data = ready(module(source, tmp_path, **more, mixture=parts if mixed else None))
        data.trainer = trainer(9)  # type: ignore[assignment]
        batches = data.train_dataloader().batches
        shown.append([batches[i]["tokens"][:, :16] for i in range(9)])
        assert all(batches[i]["tokens"].shape == (4, 16 + horizon) for i in range(9))
    assert same(shown[0], shown[1])
    assert same(shown[0], shown[2])
    assert any((batch == PRE).any() for batch in shown[0])


@pytest.mark.parametrize("level", LEVELS)
def test_a_rate_of_zero_is_none(stories: SourceConfig, tmp_path: Path, level: Any) -> None:
    found = []
    for more in ({}, {"infilling": InfillingConfig(0.0, level=level), "vocab_size": 259}):
        data = ready(module(stories, tmp_path, horizon=4, **more))
        data.trainer = trainer(9)  # type: ignore[assignment]
        found.append([data.train_dataloader().batches[i] for i in range(9)])
    for plain, transformed in zip(*found):
        assert plain.keys() == transformed.keys()
        assert all(torch.equal(plain[key], transformed[key]) for key in plain)
    assert len(list((tmp_path / "cache").iterdir())) == 1  # the corpus is prepared once, for both


def test_validation_reads_from_left_to_right(stories: SourceConfig, tmp_path: Path) -> None:
    plain = ready(module(stories, tmp_path))
    infilled = ready(module(stories, tmp_path, infilling=ALWAYS, vocab_size=259))
    rows = [list(data.val_dataloader()) for data in (plain, infilled)]
    assert all(torch.equal(a["tokens"], b["tokens"]) for a, b in zip(*rows))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_sees_what_the_uninterrupted_one_saw(
    stories: SourceConfig, tmp_path: Path, accumulate: int, level: Any
) -> None:
    def data() -> Any:
        return module(stories, tmp_path, infilling=InfillingConfig(1.0, level=level), vocab_size=259, horizon=3)

    whole, path = Recorder(), tmp_path / "saved.ckpt"
    trainer(30, accumulate_grad_batches=accumulate).fit(whole, datamodule=data())
    first, second = Recorder(13, path), Recorder()
    trainer(30, accumulate_grad_batches=accumulate).fit(first, datamodule=data())
    trainer(30, accumulate_grad_batches=accumulate).fit(second, datamodule=data(), ckpt_path=path, weights_only=True)
    assert same(first.shown + second.shown, whole.shown)


def test_it_does_not_go_on_with_another(stories: SourceConfig, tmp_path: Path) -> None:
    states = [ready(module(stories, tmp_path, infilling=InfillingConfig(rate), vocab_size=259)) for rate in (0.5, 0.9)]
    with pytest.raises(InputError, match=r"data.infilling = .*'rate': 0.5.* and this configuration says .*'rate': 0.9"):
        states[1].load_state_dict(states[0].state_dict())
    without = ready(module(stories, tmp_path))
    with pytest.raises(InputError, match="another tokenizer"):
        without.load_state_dict(states[0].state_dict())


@given(st.lists(st.booleans(), min_size=14, max_size=14), st.integers(1, 5), st.integers(1, 9))
def test_no_target_beyond_a_sentinel(marks: list[bool], n: int, T: int) -> None:
    L = T + n
    mask = torch.tensor([marks[:L]])
    out = make_targets(HeadsConfig(n), torch.arange(L)[None], sentinels_BL=mask)
    for t in range(T):
        for i in range(1, n + 1):
            assert out.valid[i - 1, 0, t] == (not any(marks[t + 1 : t + i])), (t, i)
    assert out.valid[0].all()


@pytest.mark.parametrize("level", LEVELS)
def test_the_switch_marks_the_sentinels(stories: SourceConfig, tmp_path: Path, level: Any) -> None:
    config = InfillingConfig(1.0, cross_sentinels=False, level=level)
    data = ready(module(stories, tmp_path, infilling=config, vocab_size=259, horizon=4))
    data.trainer = trainer(9)  # type: ignore[assignment]
    batch = data.train_dataloader().batches[0]
    assert torch.equal(batch[SENTINELS], (batch["tokens"] >= 256))
    assert batch[SENTINELS].any()


def test_bytes_with_sentinels() -> None:
    again = tokenizer_from_state(BYTES.state())
    assert isinstance(again, ByteTokenizer)
    assert (again.vocab_size, again.fingerprint) == (259, BYTES.fingerprint)
    assert BYTES.fingerprint != ByteTokenizer().fingerprint
    assert again.decode([PRE, *"né".encode(), SUF, MID, EOS]) == "né"
    assert sentinels(ByteTokenizer()) is None
    assert tokenizer_from_state({"kind": "bytes"}).vocab_size == 256


def named(tokens: list[str], special: bool = True) -> Tokenizer:
    import tokenizers
    from tokenizers import AddedToken

    from mtp_lightning.data.tokenizers.training import train_bpe

    made = tokenizers.Tokenizer.from_str(train_bpe(iter(["def f(x): return x"] * 5), 270))
    add = made.add_special_tokens if special else made.add_tokens
    add([AddedToken(token, special=special, normalized=False) for token in tokens])
    return HuggingFaceTokenizer(made.to_str())


def test_a_file_names_its_own() -> None:
    tokenizer = named(["<PRE>", "<SUF>", "<MID>", "<EOT>"])
    transform = WindowTransform(ALWAYS, tokenizer, 20, seed=0)
    assert transform.marks.end != tokenizer.eos_id
    tokens = np.full(20 + HORIZON_RESERVE, 7)
    made, _ = transform(0, tokens, np.zeros(len(tokens), dtype=np.int32))
    assert made[20] == transform.marks.end


WRONG = {
    "rate": (lambda: InfillingConfig(rate=1.5), "data.infilling.rate is 1.5: it has to be at least 0 and at most 1"),
    "spm": (lambda: InfillingConfig(spm=-0.1), "data.infilling.spm is -0.1"),
    "none": (lambda: WindowTransform(ALWAYS, named([]), 8, 0), "has no tokens for prefix, suffix and middle"),
    "ordinary": (
        lambda: WindowTransform(ALWAYS, named([f"<|fim_{x}|>" for x in ("middle", "prefix", "suffix")], False), 8, 0),
        r"data.infilling: '<\|fim_prefix\|>' of data.tokenizer is a token that a text can write",
    ),
}


@pytest.mark.parametrize(("make", "says"), WRONG.values(), ids=WRONG)
def test_bad_input(make: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()


def test_a_vocabulary_without_the_sentinels(stories: SourceConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"259 tokens with those of data.infilling: set .*vocab_size: 259"):
        module(stories, tmp_path, infilling=ALWAYS)


def test_pairs_are_not_infilled(tmp_path: Path) -> None:
    source, says = SourceConfig(kind="story_pairs", max_documents=40), "data.infilling is for text, and a source has "
    with pytest.raises(InputError, match=says):
        module(source, tmp_path, infilling=ALWAYS, vocab_size=259)
    mixture = [MixtureSource(SourceConfig(kind="stories")), MixtureSource(source)]
    with pytest.raises(InputError, match=says):
        module(SourceConfig(), tmp_path, mixture=mixture, infilling=ALWAYS, vocab_size=259)
    shards = ready(module(source, tmp_path, context=1200)).shards
    prepared = SourceConfig(kind="shards", path=str(shards))
    with pytest.raises(InputError, match=says):
        ready(module(prepared, tmp_path, infilling=ALWAYS, vocab_size=259, context=1200))


def test_shards_are_shared_with_plain_bytes(stories: SourceConfig, tmp_path: Path) -> None:
    """Those of plain bytes are read by a model with sentinels, and those that such a model wrote; not the other way."""
    plain = ready(module(stories, tmp_path))
    written = tmp_path / "written"
    prepare_source(written, stories, BYTES, ShardSettings(validation_fraction=0.2))
    for shards in (plain.shards, written):
        source = SourceConfig(kind="shards", path=str(shards))
        data = ready(module(source, tmp_path, infilling=InfillingConfig(0.0), vocab_size=259))
        assert len(data.train_store) > 100
        assert read_prompts(str(shards), BYTES, 8, None)
    with pytest.raises(InputError, match="were made with another tokenizer"):
        ready(module(SourceConfig(kind="shards", path=str(written)), tmp_path))
