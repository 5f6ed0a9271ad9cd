"""A model that has never seen a text without its first token gets it before a prompt."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from test_interop_import import SMALL
from test_interop_tokenizers import trained

from mtp_lightning.checkpoints.files import load_model
from mtp_lightning.cli import main
from mtp_lightning.decoding.reference import decode_plainly

transformers = pytest.importorskip("transformers")


def test_import_generate_export_and_mix_keep_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**SMALL, "vocab_size": 416, "max_position_embeddings": 64})
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "hf")
    shutil.copy(trained(tmp_path), tmp_path / "hf" / "tokenizer.model")
    out, again, mixed = (tmp_path / f"{name}.safetensors" for name in ("a", "b", "c"))
    assert main(["import", str(tmp_path / "hf"), str(out)]) == 0
    said = capsys.readouterr().out
    assert "400 tokens for 416 rows" in said
    assert "--data.tokenizer FOLDER" in said
    assert main(["export", str(out), str(again)]) == 0
    assert main(["mix", str(out), str(again), "--out", str(mixed)]) == 0
    for path in (out, again, mixed):
        loaded = load_model(path)
        assert list(loaded.begin_ids) == [1]
        written = tmp_path / "text.json"
        assert main(["generate", str(path), "--prompt", "def f", "--max_new_tokens", "5", "--json", str(written)]) == 0
        prompt = torch.tensor([1, *loaded.tokenizer.encode("def f")])
        assert json.loads(written.read_text())["ids"] == decode_plainly(loaded.model, prompt, 5)
    assert main(["export", str(out), str(tmp_path / "served"), "--to", "hf"]) == 0
    assert "the model's ids after [1], which its texts begin with" in (tmp_path / "served" / "README.md").read_text()
