"""Rows of one vocabulary out of those of another: what is kept, what is a mean, and what cannot be."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import tokenizers
import torch
from tiny import VARIANTS, tiny_backbone

from mtp_lightning.checkpoints.files import LoadedModel, save_safetensors
from mtp_lightning.checkpoints.initial import load_initial
from mtp_lightning.checkpoints.vocabulary import FURTHER, MATRICES, transfer_of, with_vocabulary
from mtp_lightning.data.tokenizers.training import train_bpe
from mtp_lightning.data.tokens.token_bytes import token_bytes, token_texts
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer, HuggingFaceTokenizer
from mtp_lightning.data.tokens.vocabulary import is_padded
from mtp_lightning.data.transforms.infilling import NAMES
from mtp_lightning.errors import InputError
from mtp_lightning.interop.importing.tokenizers import rows_note
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.initial import InitConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.model.transfer import Source, fill, make_plan

TEXTS = ["the cat sat on the mat, the café is über there", "def the_cat(value):\n    return value + 12"] * 9
BYTES, SMALL, LARGE = (
    ByteTokenizer(),
    HuggingFaceTokenizer(train_bpe(iter(TEXTS), 280)),
    HuggingFaceTokenizer(train_bpe(iter(TEXTS), 300, "gpt4")),
)


def source_of(vocab_size: int, heads: HeadsConfig = HeadsConfig(n_future=1), **backbone: object) -> Source:
    torch.manual_seed(0)
    model = MTPModel(tiny_backbone(vocab_size=vocab_size, n_layers=3, **backbone), replace(heads, match="none"))
    return Source("base.ckpt", model.config, model.heads_config, model.state_dict())


def test_rows_by_hand() -> None:
    rows = transfer_of(BYTES, LARGE, 256, 300)
    old = source_of(256, HeadsConfig(n_future=2, kind="markov"))  # which has all of them
    new = with_vocabulary(old, LARGE.vocab_size, rows.pieces)
    assert new.backbone.vocab_size == 300
    texts = token_texts(LARGE)
    several = 0
    for name in MATRICES:
        before, after = old.weights[name], new.weights[name]
        for i, text in enumerate(texts):
            if i == LARGE.eos_id:
                assert torch.equal(after[i], before[255])
                continue
            assert text
            if text == b"\xff":
                assert rows.pieces[i] == [], "no text has it, and it is the end of a document there"
                continue
            right = torch.stack([before[byte] for byte in text]).double().mean(0)
            torch.testing.assert_close(after[i].double(), right, rtol=1e-6, atol=1e-9)
            if len(text) == 1:
                assert torch.equal(after[i], before[text[0]])
            several += len(text) > 1
    assert several == len(MATRICES) * (300 - 257)


def test_shared_tokens_keep_their_rows_bit_for_bit_and_others_are_of_their_pieces() -> None:
    old = source_of(280)
    new = with_vocabulary(old, 300, transfer_of(SMALL, LARGE, 280, 300).pieces)
    at = {text: i for i, text in enumerate(token_texts(SMALL)) if text}
    shared = [(i, at[text]) for i, text in enumerate(token_texts(LARGE)) if text in at]
    assert len(shared) > 256
    for i, j in shared:
        assert torch.equal(new.weights["embedding.weight"][i], old.weights["embedding.weight"][j])
    rows = transfer_of(SMALL, LARGE, 280, 300)
    made = [(text, found) for text, found in zip(token_texts(LARGE), rows.pieces) if len(found) > 1]
    assert made
    small = token_texts(SMALL)
    assert all(b"".join(small[i] or b"" for i in found) == text for text, found in made)
    assert f"{len(shared) + 1} tokens keep their rows, {len(made)} are means" in rows.summary


def with_marks(made: HuggingFaceTokenizer, *names: str, begin: str | None = None) -> HuggingFaceTokenizer:
    """With special tokens after the others, one of them put before every text."""
    fast = tokenizers.Tokenizer.from_str(made.state()["json"])
    fast.add_special_tokens(list(names))
    if begin is not None:
        ids = [(begin, fast.token_to_id(begin))]
        fast.post_processor = tokenizers.processors.TemplateProcessing(single=f"{begin} $A", special_tokens=ids)
    return HuggingFaceTokenizer(fast.to_str())


def test_pieces_are_those_that_the_old_tokenizer_writes() -> None:
    """Its merges, and not the longest tokens that fit: a merge that comes first takes a letter away."""
    alphabet = json.loads(SMALL.state()["json"])
    merges = [("b", "c"), ("a", "b"), ("bc", "d"), ("ab", "x")]
    alphabet["model"]["merges"] = [*merges]
    known = [name for name, i in alphabet["model"]["vocab"].items() if i < 257]
    names = [*known, *("".join(merge) for merge in merges)]
    alphabet["model"]["vocab"] = {name: i for i, name in enumerate(names)}
    old = HuggingFaceTokenizer(json.dumps(alphabet))
    new = HuggingFaceTokenizer(train_bpe(iter(["abcd"] * 9), 260))
    wanted = old.encode("abcd")
    assert [old.decode([i]) for i in wanted] == ["a", "bcd"]
    at = token_texts(new).index(b"abcd")
    assert transfer_of(old, new, old.vocab_size, new.vocab_size).pieces[at] == wanted


def test_special_tokens_keep_what_they_have_learned() -> None:
    """By name; those of infilling and the beginning by what they do, the end too."""
    starcoder = with_marks(SMALL, "<s>", "<|user|>", *NAMES["starcoder"], begin="<s>")
    llama = with_marks(LARGE, "<|user|>", "<|other|>", *NAMES["codellama"], "<|begin|>", begin="<|begin|>")
    user, other, *infilling, begin = range(300, 307)
    pieces = transfer_of(starcoder, llama, starcoder.vocab_size, llama.vocab_size).pieces
    assert (pieces[user], pieces[other], pieces[begin]) == ([281], [], [280])
    assert [pieces[i] for i in infilling] == [[282], [283], [284], [starcoder.eos_id]]
    assert pieces[llama.eos_id] == [starcoder.eos_id]
    marked = ByteTokenizer(infilling=True)
    pieces = transfer_of(marked, llama, 259, llama.vocab_size).pieces
    assert [pieces[i] for i in infilling] == [[256], [257], [258], [255]]
    assert transfer_of(llama, marked, llama.vocab_size, 259).pieces[-3:] == [[i] for i in infilling[:3]]


def test_a_letter_is_no_byte_to_fall_back_on() -> None:
    """Llama's vocabulary has both, and models have never seen the byte."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "a", "b"]
    fast = tokenizers.Tokenizer(
        tokenizers.models.BPE({name: i for i, name in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True)
    )
    fast.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()])
    fast.add_special_tokens(["<unk>", "<s>", "</s>"])
    pieces = transfer_of(HuggingFaceTokenizer(fast.to_str()), BYTES, len(names), 256).pieces
    assert (pieces[ord("a")], pieces[ord("c")]) == ([259], [3 + ord("c")])


@pytest.mark.parametrize("vocabulary", ["transfer", "keep"])
def test_what_texts_begin_with_stays_or_is_the_new_tokenizers(
    vocabulary: Literal["transfer", "keep"], tmp_path: Path
) -> None:
    old, path = with_marks(SMALL, "<s>", begin="<s>"), tmp_path / "base.safetensors"
    model = MTPModel(tiny_backbone(vocab_size=320, n_layers=3), HeadsConfig(n_future=1))
    save_safetensors(LoadedModel(path, model, old, 1, 16, None, [280]), path)
    init = InitConfig(str(path), unembedding="keep" if vocabulary == "transfer" else "random", vocabulary=vocabulary)
    of_new = with_marks(LARGE, "<x>", "<|begin|>", begin="<|begin|>")
    begins = {old: (280,), of_new: (301,) if vocabulary == "transfer" else (), LARGE: ()}
    for tokenizer, wanted in begins.items():
        assert load_initial(init, model, tokenizer).begin_ids == wanted


@pytest.mark.parametrize("unembedding", ["keep", "random"])
def test_another_end_of_documents_is_no_other_vocabulary(
    unembedding: Literal["keep", "random"], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ChatML's models are imported, and a run without `data.end_token` reads the same file."""
    both = with_marks(SMALL, "<|im_end|>").state()["json"]
    usual, ours = HuggingFaceTokenizer(both), HuggingFaceTokenizer(both, end_token="<|im_end|>")
    there, path = MTPModel(tiny_backbone(vocab_size=320), HeadsConfig(n_future=1)), tmp_path / "base.safetensors"
    save_safetensors(LoadedModel(path, there, ours, 1, 16, None), path)
    for tokenizer, said in ((usual, f"documents end with '{usual.end_token}', there with '<|im_end|>'"), (ours, "")):
        here = MTPModel(there.config, there.heads_config)
        load_initial(InitConfig(str(path), unembedding=unembedding), here, tokenizer)
        assert torch.equal(here.embedding.weight, there.embedding.weight)
        printed = capsys.readouterr().err
        assert said in printed
        assert ("data.end_token" in printed) == bool(said)


def test_rows_that_are_no_tokens_are_left_out(tmp_path: Path) -> None:
    """As `mtp import` says it to the user of a model with more of them than padding explains."""
    rows = SMALL.vocab_size + 1300
    note = rows_note(SMALL, rows)
    assert f"--model.backbone.vocab_size {SMALL.vocab_size} --model.init.vocabulary transfer" in note
    assert rows_note(SMALL, 320) == rows_note(SMALL, SMALL.vocab_size) == rows_note(None, rows) == ""
    there, path = MTPModel(tiny_backbone(vocab_size=rows), HeadsConfig(n_future=1)), tmp_path / "base.safetensors"
    save_safetensors(LoadedModel(path, there, SMALL, 1, 16, None), path)
    here = MTPModel(tiny_backbone(vocab_size=SMALL.vocab_size), HeadsConfig(n_future=1))
    load_initial(InitConfig(str(path), vocabulary="transfer"), here, SMALL)
    for name, weight in here.named_parameters():
        assert torch.equal(weight, there.get_parameter(name)[: len(weight)]), name


@pytest.mark.parametrize(
    ("rows", "tokens", "padded"),
    [(102400, 100016, True), (102401, 100016, False), (108800, 100016, False), (1344, 300, False), (320, 320, False)],
)
def test_what_is_taken_for_padding(rows: int, tokens: int, padded: bool) -> None:
    """The first is deepseek-llm-7b."""
    assert is_padded(rows, tokens) == padded


def test_the_order_of_ids_means_nothing() -> None:
    described = json.loads(LARGE.state()["json"])
    last = LARGE.vocab_size - 1
    vocabulary = described["model"]["vocab"]
    described["model"]["vocab"] = {name: last - i for name, i in vocabulary.items()}
    for token in described["added_tokens"]:
        token["id"] = last - token["id"]
    turned = HuggingFaceTokenizer(json.dumps(described))
    assert transfer_of(BYTES, turned, 256, 300).pieces == transfer_of(BYTES, LARGE, 256, 300).pieces[::-1]


@pytest.mark.parametrize("heads", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("tied", [False, True])
def test_the_same_tokenizer_is_the_same_model(heads: HeadsConfig, tied: bool) -> None:
    source = source_of(320, heads, tie_embeddings=tied)  # padded
    same = with_vocabulary(source, 320, transfer_of(SMALL, SMALL, 320, 320).pieces)
    assert same.backbone == source.backbone
    assert all(torch.equal(same.weights[name], weight) for name, weight in source.weights.items())


def test_every_unembedding_and_nothing_else() -> None:
    source = source_of(256, HeadsConfig(n_future=3, replicate_unembedding=True))
    new = with_vocabulary(source, 320, transfer_of(BYTES, LARGE, 256, 320).pieces)
    changed = {name for name, weight in source.weights.items() if new.weights[name].shape != weight.shape}
    assert changed == {name for name in source.weights if name in MATRICES or name.startswith(FURTHER)}
    assert len(changed) == 4
    for name in changed:
        mean = source.weights[name].double().mean(0).float()
        torch.testing.assert_close(new.weights[name][300:], mean.expand(20, -1))  # rows without a token
    shapes = with_vocabulary(source, 320)
    assert all(shapes.weights[name].shape == weight.shape for name, weight in new.weights.items())
    model = MTPModel(replace(source.backbone, vocab_size=320), source.heads)
    fill(model, new, make_plan(new, model, InitConfig("base.ckpt", vocabulary="transfer")))
    assert torch.equal(model.embedding.weight, new.weights["embedding.weight"])


def test_without_a_common_alphabet() -> None:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "the": 1, "cat": 2, "</s>": 3}, "<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.add_special_tokens(["</s>", "<unk>"])
    with pytest.raises(InputError, match=r"of 280 tokens of data.tokenizer those of .* cannot write 2\d\d"):
        transfer_of(HuggingFaceTokenizer(words.to_str()), SMALL, 4, 280)


def test_texts_of_tokens_are_those_that_are_counted() -> None:
    for tokenizer in (BYTES, SMALL, LARGE):
        for text in TEXTS[:2]:
            made = b"".join(token_texts(tokenizer)[i] or b"" for i in tokenizer.encode(text))
            assert made == text.encode()
        assert [*token_bytes(tokenizer)] == [len(text or b"") for text in token_texts(tokenizer)]
