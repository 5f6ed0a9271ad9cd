# mypy: ignore-errors
"""A Llama with further prediction heads, `parallel`, `causal` or `linear` (arXiv 2404.19737).

Head i predicts the token i places ahead. With z the state after the trunk, the first `config.mtp_trunk_layers` layers,
and H_i the layers of head i:

    parallel   h_i = H_i(z)          causal   h_i = H_i(h_{i-1}), h_0 = z          linear   h_i = A_i z, a matrix

and the logits of head i are lm_head(norm(h_i)). Head 1 is the ordinary model, `forward`: its layers are the last of
`model.layers`, or, of `linear`, its matrix goes before `model.norm`. `custom_generate/generate.py` decodes with all.
"""

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import create_causal_mask
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm


class ProjectedNorm(LlamaRMSNorm):
    """norm(A x): head 1 of kind `linear`."""

    def __init__(self, width, eps):
        super().__init__(width, eps)
        self.projection = nn.Linear(width, width, bias=False)

    def forward(self, x):
        return super().forward(self.projection(x))


class MtpLightningForCausalLM(LlamaForCausalLM):
    """
    Of the configuration: `mtp_kind`; `mtp_n_future`, the number of heads; `mtp_trunk_layers`; `mtp_head_layers`, layers
    of each head; `mtp_unembeddings`, whether each head has an lm_head of its own.
    """

    def __init__(self, config):
        super().__init__(config)
        width, further = config.hidden_size, range(config.mtp_n_future - 1)
        if config.mtp_kind == "linear":
            self.model.norm = ProjectedNorm(width, config.rms_norm_eps)
            self.mtp_heads = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in further)
        else:
            m = config.mtp_head_layers
            self.mtp_heads = nn.ModuleList(
                nn.ModuleList(_layer(config, head * m + j) for j in range(m)) for head in further
            )
        own = further if config.mtp_unembeddings else ()
        self.mtp_lm_heads = nn.ModuleList(nn.Linear(width, config.vocab_size, bias=False) for _ in own)
        self.post_init()

    def next_states(self, tokens, cache=None):
        """(z, h_1), each (B, T, D), at new positions after those in `cache`: h_1 goes through `model.norm`."""
        x = z = self.model.embed_tokens(tokens)
        extra = self._positions(x, cache)
        for i, layer in enumerate(self.model.layers, start=1):
            x = layer(x, **extra)
            z = x if i == self.config.mtp_trunk_layers else z
        return z, x

    def further_states(self, z, h, cache=None, count=None):
        """[h_2, h_3, ..] of all further heads, or the first `count`, at the same positions, each (B, T, D). `cache` is
        their own."""
        heads = self.mtp_heads[:count]
        if self.config.mtp_kind == "linear":
            return [head(z) for head in heads]
        extra, states = self._positions(z, cache), []
        for head in heads:
            h = h if self.config.mtp_kind == "causal" else z
            for layer in head:
                h = layer(h, **extra)
            states.append(h)
        return states

    def further_logits(self, states):
        """Logits of heads 2 .. n of their states, each (B, T, V)."""
        norm = self.model.norm
        if self.config.mtp_kind == "linear":  # head 1's matrix is not for them
            states = [LlamaRMSNorm.forward(norm, h) for h in states]
        else:
            states = [norm(h) for h in states]
        unembeddings = self.mtp_lm_heads or [self.lm_head] * len(states)
        return [unembed(h) for unembed, h in zip(unembeddings, states)]

    def head_logits(self, tokens):
        """Logits of every head at every position, (N, B, T, V)."""
        z, h = self.next_states(tokens)
        return torch.stack([self.lm_head(self.model.norm(h)), *self.further_logits(self.further_states(z, h))])

    def _positions(self, x, cache):
        """What each layer needs besides its input: angles, mask, cache."""
        start = cache.get_seq_length() if cache is not None else 0
        positions = torch.arange(start, start + x.shape[1], device=x.device)[None]
        mask = create_causal_mask(
            config=self.config, inputs_embeds=x, attention_mask=None, past_key_values=cache, position_ids=positions
        )
        angles = self.model.rotary_emb(x, position_ids=positions)
        return {
            "attention_mask": mask, "position_ids": positions, "position_embeddings": angles, "past_key_values": cache
        }  # fmt: skip


def _layer(config, index):
    """A layer whose keys and values are entry `index` of its cache."""
    layer = LlamaDecoderLayer(config, 0)
    layer.self_attn.layer_idx = index
    return layer


class MtpLinearConfig(LlamaConfig):
    """A type of its own, so that nothing loads the model as a Llama, without the matrix before its norm."""

    model_type = "mtp_linear"


class MtpLinearForCausalLM(MtpLightningForCausalLM):
    config_class = MtpLinearConfig
