"""Places of documents by somebody's encoder: a tiny BERT, made here."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_data_prune_command import columns, prune, source_of, work
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from mtp_lightning.cli import main
from mtp_lightning.data.corpora.documents import Document, documents
from mtp_lightning.data.corpora.kept import read_kept
from mtp_lightning.data.preparing import pieces
from mtp_lightning.data.pruning.measuring import EncoderProvider
from mtp_lightning.errors import InputError

__all__ = ["work"]

transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.usefixtures("shapes_unchecked"), pytest.mark.filterwarnings("default")]
ROOM = 20
"""Tokens of a window, the two special ones included."""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    vocabulary = {name: i for i, name in enumerate(["[CLS]", "[SEP]", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)])
    tokenizer.enable_truncation(8)  # as many such files have, and padding
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": ROOM}))
    config = transformers.BertConfig(
        vocab_size=258, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64,
    )  # fmt: skip
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def by_hand(encoder: Path, text: str, first_tokens: int | None = None) -> np.ndarray:
    """The mean state over windows, each between [CLS] and [SEP]."""
    model = transformers.AutoModel.from_pretrained(encoder).eval()
    names = [Tokenizer.from_file(str(encoder / "tokenizer.json")).token_to_id(c) for c in byte_names(text)][
        :first_tokens
    ]
    states = []
    for start in range(0, len(names), ROOM - 2):
        with torch.no_grad():
            window = torch.tensor([[0, *names[start : start + ROOM - 2], 1]])
            states.append(model(input_ids=window).last_hidden_state[0])
    return torch.cat(states).mean(0).numpy()  # type: ignore[no-any-return]


def byte_names(text: str) -> list[str]:
    ((found, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return list(found)


@pytest.mark.parametrize("first_tokens", [None, 7, 18, 25])
def test_a_documents_place_is_the_mean_of_the_last_states(encoder: Path, work: Path, first_tokens: int | None) -> None:
    some = list(documents(source_of(work)))[:5]
    provider = EncoderProvider(encoder, first_tokens)
    assert max(len(one.text) for one in some) > 7 * ROOM
    expected = [by_hand(encoder, one.text, first_tokens) for one in some]
    np.testing.assert_allclose(provider.embed(some), np.stack(expected), atol=1e-5)
    assert provider.fingerprint != EncoderProvider(encoder, 3).fingerprint


def test_half_a_character_is_a_question_mark(encoder: Path) -> None:
    odd, plain = (Document("d", f"x = '{text}'") for text in ("\ud83d", "?"))
    np.testing.assert_array_equal(*EncoderProvider(encoder).embed([odd, plain]))


@pytest.mark.parametrize(
    "more", [{"_attn_implementation": "somebody/kernel"}, {"auto_map": {"AutoModel": "x.X", "AutoConfig": "x.Y"}}]
)
def test_nothing_that_its_files_name_is_run(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "encoder"
    shutil.copytree(encoder, folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    (folder / "x.py").write_text(
        "open('executed', 'w').close()\nfrom transformers import BertModel as X, BertConfig as Y\n"
    )
    one = [Document("d", "x = 1")]
    np.testing.assert_array_equal(EncoderProvider(folder).embed(one), EncoderProvider(encoder).embed(one))
    assert not list(tmp_path.rglob("executed"))


def test_it_goes_through_the_gate_and_prunes(
    encoder: Path, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"ckpt": None, "embedder": str(encoder)}
    with pytest.raises(InputError, match=rf"do not see that .*mtp data corruptions --embedder {encoder}`"):
        prune(work, tmp_path / "kept", "scip", **asked, force=False)
    assert [*tmp_path.iterdir()] == []
    whole = prune(work, tmp_path / "kept", "scip", **asked)
    header = read_kept(str(tmp_path / "kept")).header
    assert header.made_by["gate"]["forced"]
    assert header.made_by["model"].startswith("encoder ")
    assert str(encoder) not in whole["kept"].decode()
    assert columns(tmp_path / "kept")["distance"] != columns_of_checkpoint(work, tmp_path)
    (tmp_path / "again").mkdir()
    monkeypatch.setattr(pieces, "_pool", lambda n, job: ThreadPoolExecutor(n, "", pieces._begin, (job,)))
    assert prune(work, tmp_path / "again" / "kept", "scip", **asked, workers=2) == whole


def columns_of_checkpoint(work: Path, folder: Path) -> Any:
    prune(work, folder / "ours", "scip")
    return columns(folder / "ours")["distance"]


def test_the_table_has_its_distances_alone(encoder: Path, work: Path, tmp_path: Path) -> None:
    flags = ["--kind", "text", "--path", str(work / "corpus"), "--glob", "**/*.py", "--json", str(tmp_path / "t.json")]
    assert main(["data", "corruptions", "--embedder", str(encoder), "--count", "4", *flags]) == 0
    found = json.loads((tmp_path / "t.json").read_text())
    assert {row["scorer"] for row in found["rows"]} == {"distance", "small_cluster"} == found["passes"].keys()


def changed(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return make


def add_token(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["return"])
    tokenizer.save(str(folder / "tokenizer.json"))


WEIGHT = "encoder.layer.1.output.dense.weight"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (shutil.rmtree, "has to be the folder of an encoder in Hugging Face's layout, and has no config.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"has no tokenizer\.json"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "no model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), "cannot be used as an encoder"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot be used as an encoder"),
        (add_token, "its tokenizer has 259 tokens, and its model knows 258$"),
        (changed(lambda weights: weights.pop(WEIGHT)), f"lacks the weights {WEIGHT}$"),
        (changed(lambda weights: weights[WEIGHT].fill_(float("nan"))), "is not finite: its weights are damaged"),
    ],
)  # fmt: skip
def test_what_is_no_encoder_is_refused(
    encoder: Path, work: Path, tmp_path: Path, spoil: Callable[[Path], Any], says: str
) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(encoder, folder)
    spoil(folder)
    with pytest.raises(InputError, match=f"^embedder: '{folder}'.*{says}"):
        prune(work, tmp_path / "kept", "scip", ckpt=None, embedder=str(folder))
    assert not [*tmp_path.glob("*kept*")]


def test_an_encoder_has_no_losses(encoder: Path, work: Path, tmp_path: Path) -> None:
    for by, changes in {"loss": {"ckpt": None}, "length": {}, "scip": {}}.items():
        with pytest.raises(InputError, match="embedder: an encoder tells the places of documents for scip and protot"):
            prune(work, tmp_path / "kept", by, embedder=str(encoder), **changes)
