"""Rows of one vocabulary out of those of another: what is kept, what is a mean, and what cannot be."""

import json
from dataclasses import replace

import pytest
import tokenizers
import torch
from tiny import VARIANTS, tiny_backbone

from mtp_lightning.checkpoints.vocabulary import FURTHER, MATRICES, transfer_of, with_vocabulary
from mtp_lightning.data.tokenizers.training import train_bpe
from mtp_lightning.data.tokens.token_bytes import token_bytes, token_texts
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer, HuggingFaceTokenizer
from mtp_lightning.errors import InputError
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


def test_shared_tokens_keep_their_rows_bit_for_bit_and_others_are_of_the_longest_pieces() -> None:
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
