"""Tokenizers of an exported folder, as `AutoTokenizer` reads them."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_evaluation_lm_eval import begun
from test_evaluation_samples import bpe
from test_interop_export import save, trained

from mtp_lightning.checkpoints.files import load_model
from mtp_lightning.cli import main
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer, HuggingFaceTokenizer, begin_ids
from mtp_lightning.data.transforms.infilling import sentinels
from mtp_lightning.interop.export_folder import byte_tokenizer, write_tokenizer
from mtp_lightning.interop.export_gate import compare_tokenizer
from mtp_lightning.interop.export_gguf import vocabulary_of
from mtp_lightning.model.config import HeadsConfig

pytestmark = pytest.mark.filterwarnings("default")  # of transformers' own
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def byte_folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("bytes")
    write_tokenizer(folder, ByteTokenizer().state(), None, 64)
    return AutoTokenizer.from_pretrained(folder)


@settings(max_examples=100, deadline=None)
@given(text=st.text() | st.sampled_from(["<|endoftext|>", " <|endoftext|>x", "\r\n\t", "Ā ġ Ċ", "\ufeff\u0000"]))
def test_autotokenizer_reads_bytes_as_ours(byte_folder: Any, text: str) -> None:
    ours = ByteTokenizer()
    ids = ours.encode(text)
    assert byte_folder(text)["input_ids"] == ids
    assert byte_folder.decode(ids) == text
    assert byte_folder.decode([*ids, ours.eos_id], skip_special_tokens=True) == text


@settings(max_examples=50, deadline=None)
@given(ids=st.lists(st.integers(0, 255)))
def test_autotokenizer_decodes_any_bytes_as_ours(byte_folder: Any, ids: list[int]) -> None:
    assert byte_folder.decode(ids, skip_special_tokens=True) == ByteTokenizer().decode(ids)
    assert byte_folder.eos_token_id == 255


def test_bytes_with_infilling_go_out_and_come_back(tmp_path: Path) -> None:
    """As StarCoder's tokens, at the ids that the model was trained with."""
    ours = ByteTokenizer(infilling=True)
    write_tokenizer(tmp_path, ours.state(), None, 64)
    theirs = HuggingFaceTokenizer((tmp_path / "tokenizer.json").read_text())
    assert sentinels(theirs) == sentinels(ours)
    text = "né <fim_prefix> 🙂"
    assert theirs.encode(text) == ours.encode(text)
    assert theirs.decode([256, *ours.encode(text), 258, 255]) == text
    vocabulary = vocabulary_of(ours, 259)
    assert vocabulary is not None
    assert [vocabulary.tokens[i] for i in (256, 257, 258)] == ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]
    assert vocabulary.special == {255, 256, 257, 258}


def test_the_token_before_every_text_is_named(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    ours = begun(bpe())
    begin = begin_ids(ours)
    write_tokenizer(tmp_path, ours.state(), ours.end_token, 64, begin)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert [theirs.bos_token_id] == begin
    assert theirs("def f")["input_ids"] == [*begin, *ours.encode("def f")]
    said = compare_tokenizer(tmp_path, ours, begin)
    assert f"the model's ids after {begin}, which its texts begin with, and decodes them" in said
    assert "`add_special_tokens=False`; by default it adds other" in compare_tokenizer(tmp_path, ours, [])
    assert f"`add_special_tokens=False` after {[7, *begin]}" in compare_tokenizer(tmp_path, ours, [7, *begin])


def test_a_tokenizer_json_goes_out_as_it_is(tmp_path: Path) -> None:
    tokenizer = HuggingFaceTokenizer(byte_tokenizer(), "it")
    model = trained(HeadsConfig(n_future=2))
    source = save(tmp_path / "m.safetensors", model, tokenizer)  # type: ignore[arg-type]
    assert load_model(source).tokenizer.eos_id == 255
    assert main(["export", str(source), str(tmp_path / "out"), "--to", "hf"]) == 0
    assert (tmp_path / "out" / "tokenizer.json").read_text() == byte_tokenizer()
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == 255
