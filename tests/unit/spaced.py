"""A tokenizer of Code Llama's kind: a space before every text, which the decoder takes away, and bytes for the rest."""

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

from mtp_lightning.data.tokens.tokenizer import HuggingFaceTokenizer

SENTINELS = ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")


def spaced() -> HuggingFaceTokenizer:
    """With infilling tokens, and <s> before every text."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz=():+-*"]
    merges = [("▁", "▁"), ("▁▁", "▁▁"), ("▁", "d"), ("▁d", "e")]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, *(a + b for a, b in merges)])}
    made = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(parts)
    special = ["<unk>", "<s>", "</s>", *SENTINELS]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return HuggingFaceTokenizer(made.to_str())
