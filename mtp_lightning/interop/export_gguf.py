"""A Llama as one GGUF file, for llama.cpp: float32, with the tokenizer where GGUF holds it.

llama.cpp rotates neighbouring coordinates, so rows of the maps to queries and keys are put in another order, as in
Meta's layout. Byte-level BPE is what its tokenizer `gpt2` computes; bytes are that without merges.
"""

import importlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mtp_lightning.data.tokens.token_bytes import byte_alphabet
from mtp_lightning.data.transforms.infilling import STARCODER
from mtp_lightning.errors import InputError, UnprovenError
from mtp_lightning.interop import llama_cpp_model
from mtp_lightning.interop.export_folder import END_OF_BYTES
from mtp_lightning.interop.export_hf import Exported, context_of, export_model
from mtp_lightning.interop.importing.import_meta import to_neighbours
from mtp_lightning.model.config import BackboneConfig
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.model.rope import rope_frequencies

if TYPE_CHECKING:
    from mtp_lightning.data.tokens.tokenizer import Tokenizer

HOW_TO_INSTALL = "pip install gguf"
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
BLOCK = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""Hugging Face's names -> GGUF's."""
PROMPT, NEW = 16, 32
"""Tokens of the text that is compared."""
TIE = 1e-5
"""Gap of two logits, over the largest of all, that rounding may turn around."""
NEVER_MERGED = "\u00ff \u00ff"
"""Two bytes 255, which no UTF-8 has: llama.cpp wants a list of merges, and an empty one is not written."""

BY_CONTEXT = ("single_word", "lstrip", "rstrip")
"""Flags of an added token that make it depend on what is around it, which GGUF does not hold."""


class Vocabulary(NamedTuple):
    """What GGUF says of a tokenizer."""

    tokens: list[str]
    special: set[int]
    whole: set[int]
    """Added tokens that a text can write: they are cut out of it before anything else."""
    merges: list[str]
    end: int


def why_not() -> str:
    """What keeps such a file from being written; empty where nothing does."""
    if importlib.util.find_spec("gguf") is None:
        return f"the package that writes GGUF files is not installed: {HOW_TO_INSTALL}"
    return ""


def check_gguf() -> None:
    """
    Raises:
        InputError: the package is not installed.
    """
    if reason := why_not():
        raise InputError(f"to is 'gguf': {reason}")


@torch.no_grad()
def export_llama(model: MTPModel, keep: int | None = None) -> Exported:
    """
    Raises:
        InputError: it is no Llama; names the key, and what would work instead.
    """
    heads, backbone = model.heads_config, model.config
    if heads.kind == "linear" or (heads.n_future > 1 and keep != 1):
        instead = "" if heads.kind == "linear" else ": give `--heads 1`, which leaves the other heads out"
        raise InputError(
            f"model.heads.kind is '{heads.kind}', with n_future {heads.n_future}: a GGUF file is written of a plain "
            f"Llama{instead}"
        )
    fits = {
        "attention_bias": backbone.attention_bias == "none",
        "qk_norm": not backbone.qk_norm,
        "rope_scaling": backbone.rope_scaling.attention == 1,
    }
    for key in (key for key, does in fits.items() if not does):
        value = getattr(backbone, key)
        raise InputError(f"model.backbone.{key} is {value}: a GGUF file is written of a plain Llama, which has none")
    return export_model(model, keep, torch.float32)


def tensors_of(exported: Exported, backbone: BackboneConfig) -> dict[str, Tensor]:
    """GGUF's name -> tensor. Rotary frequencies that were slowed are there as what they are divided by."""
    tensors = {}
    for name, tensor in exported.tensors.items():
        place, _, kind = name.rpartition(".")
        if place in TOP:
            tensors[f"{TOP[place]}.{kind}"] = tensor
            continue
        _, _, layer, inside = place.split(".", 3)
        turned = inside in ("self_attn.q_proj", "self_attn.k_proj")
        own = to_neighbours(tensor, backbone.head_size) if turned else tensor
        tensors[f"blk.{layer}.{BLOCK[inside]}.{kind}"] = own.contiguous()
    if backbone.rope_scaling.kind != "default":
        exponents = torch.arange(0, backbone.head_size, 2).double() / backbone.head_size
        plain = backbone.rope_theta**-exponents
        slowed = rope_frequencies(backbone, torch.device("cpu")).double()
        tensors["rope_freqs.weight"] = (plain / slowed).float()
    return tensors


def vocabulary_of(tokenizer: "Tokenizer", vocab_size: int) -> Vocabulary | None:
    """None where GGUF does not hold such a tokenizer. Ids that the tokenizer lacks are there as unused ones."""
    state = tokenizer.state()
    if state["kind"] == "bytes":
        tokens = byte_alphabet()
        tokens[tokenizer.eos_id] = END_OF_BYTES
        tokens += STARCODER if "infilling" in state else ()
        return Vocabulary(tokens, {*range(tokenizer.eos_id, len(tokens))}, set(), [NEVER_MERGED], tokenizer.eos_id)
    described = json.loads(state["json"])
    if not _is_gpt2(described):
        return None
    known = {number: token for token, number in described["model"]["vocab"].items()}
    extra = described.get("added_tokens", [])
    if any(token.get(flag) for token in extra for flag in BY_CONTEXT if not token["special"]):
        return None
    added = {token["id"]: token["content"] for token in extra}
    special = {token["id"] for token in extra if token["special"]}
    tokens = [(known | added).get(i, f"[unused{i}]") for i in range(vocab_size)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in described["model"]["merges"]]
    return Vocabulary(tokens, special, {*added} - special, merges or [NEVER_MERGED], tokenizer.eos_id)


def _is_gpt2(described: Mapping[str, Any]) -> bool:
    """Byte-level BPE whose words are GPT-2's, and nothing before or around it."""
    before = described.get("pre_tokenizer") or {}
    plain = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    return (
        described["model"].get("type") == "BPE"
        and all(described["model"].get(key) in (value, "") for key, value in plain.items())
        and not described["model"].get("ignore_merges")
        and described.get("normalizer") is None
        and before.get("type") == "ByteLevel"
        and not before.get("add_prefix_space")
        and before.get("use_regex", True)
    )


def write_gguf(
    file: Path,
    model: MTPModel,
    exported: Exported,
    context: int | None,
    vocabulary: Vocabulary | None,
    begins: int | None,
) -> None:
    """
    Args:
        context: positions that it was trained on.
        begins: the token that every text begins with.

    Raises:
        OSError: the disk is full, and what else may be wrong with it.
    """
    gguf: Any = importlib.import_module("gguf")
    backbone, config = model.config, exported.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(context_of(backbone, context))
    writer.add_embedding_length(backbone.dim)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(backbone.n_heads)
    writer.add_head_count_kv(backbone.kv_heads)
    writer.add_key_length(backbone.head_size)
    writer.add_value_length(backbone.head_size)
    writer.add_layer_norm_rms_eps(backbone.norm_eps)
    writer.add_rope_dimension_count(backbone.head_size)
    writer.add_rope_freq_base(backbone.rope_theta)
    writer.add_vocab_size(backbone.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if vocabulary is None:
        writer.add_tokenizer_model("none")
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(vocabulary.tokens)
        kinds = dict.fromkeys(vocabulary.special, gguf.TokenType.CONTROL)
        kinds |= dict.fromkeys(vocabulary.whole, gguf.TokenType.USER_DEFINED)
        writer.add_token_types([kinds.get(i, gguf.TokenType.NORMAL) for i in range(len(vocabulary.tokens))])
        writer.add_token_merges(vocabulary.merges)
        writer.add_eos_token_id(vocabulary.end)
        writer.add_add_bos_token(begins is not None)
        writer.add_add_space_prefix(False)
        if begins is not None:
            writer.add_bos_token_id(begins)
    for name, tensor in tensors_of(exported, backbone).items():
        writer.add_tensor(name, tensor.numpy())
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


@torch.no_grad()
def prove(file: Path, model: MTPModel, exported: Exported) -> str:
    """Read the file again; where llama.cpp is installed, let it write, and see that ours writes the same. What was
    compared.

    Raises:
        UnprovenError: a difference.
    """
    gguf: Any = importlib.import_module("gguf")
    missing = tensors_of(exported, model.config)
    for read in gguf.GGUFReader(file).tensors:
        tensor = missing.pop(read.name, None)
        if tensor is None or not torch.equal(tensor.flatten(), torch.tensor(read.data).flatten()):
            raise UnprovenError(f"the tensor '{read.name}' is not what was written: nothing was exported")
    if missing:
        raise UnprovenError(f"the tensor '{next(iter(missing))}' is not in the file: nothing was exported")
    if reason := llama_cpp_model.why_not():
        return f"All tensors are read back to the last bit. No text was compared: {reason}"
    prompt = torch.randint(0, model.config.vocab_size, (PROMPT,), generator=torch.Generator().manual_seed(0)).tolist()
    with llama_cpp_model.LlamaCpp(file, PROMPT + NEW, torch.get_num_threads()) as theirs:
        text = torch.tensor([prompt + theirs.continued(prompt, NEW)])
    logits_SV = model.unembedding(model.next_token_states(text[:, :-1]))[0, PROMPT - 1 :]
    chosen = logits_SV.gather(1, text[0, PROMPT:, None])[:, 0]
    if (logits_SV.max(-1).values - chosen > TIE * logits_SV.abs().max()).any():
        raise UnprovenError("llama.cpp continues a text otherwise: nothing was exported")
    return f"All tensors are read back to the last bit, and llama.cpp writes the same {NEW} tokens."
