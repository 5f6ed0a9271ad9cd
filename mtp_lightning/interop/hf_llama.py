"""The configuration of Hugging Face's `LlamaForCausalLM`."""

from typing import Any

from mtp_lightning.model.config import BackboneConfig


def llama_config(config: BackboneConfig, n_layers: int) -> dict[str, Any]:
    """Keyword arguments of `transformers.LlamaConfig` for a trunk + head 1 of `n_layers` layers."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn,
        "num_hidden_layers": n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
    }
