"""Importing takes memory for a tensor, not for the model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

D, V, LAYERS, FFN = 1024, 16000, 12, 4096
MEASURE = """
import sys
import torch, safetensors
import mtp_lightning.model.mtp, mtp_lightning.checkpoints.streaming
from mtp_lightning.interop.importing.import_command import import_command
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
before = peak()
import_command(sys.argv[1], sys.argv[2], tokenizer="none")
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_below_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shapes = {"self_attn.q_proj": (D, D), "self_attn.k_proj": (D, D), "self_attn.v_proj": (D, D)}
    shapes |= {
        "self_attn.o_proj": (D, D),
        "mlp.gate_proj": (FFN, D),
        "mlp.up_proj": (FFN, D),
        "mlp.down_proj": (D, FFN),
    }
    index, total = {}, 0
    for i in range(LAYERS + 1):
        weights = {f"model.layers.{i}.{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{i}.{norm}.weight"] = torch.ones(D)
        if i == LAYERS:
            weights = {f"{name}.weight": torch.randn(V, D) for name in ("model.embed_tokens", "lm_head")}
            weights["model.norm.weight"] = torch.ones(D)
        weights = {name: weight.bfloat16() for name, weight in weights.items()}
        save_file(weights, tmp_path / f"{i}.safetensors")
        index |= dict.fromkeys(weights, f"{i}.safetensors")
        total += sum(weight.nbytes for weight in weights.values())
    config = {"model_type": "llama", "hidden_size": D, "vocab_size": V, "num_hidden_layers": LAYERS,
              "num_attention_heads": 16, "intermediate_size": FFN}  # fmt: skip
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-c", MEASURE, str(tmp_path), str(tmp_path / "out.safetensors")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(out.split()[-1]) < 1.3 * total
