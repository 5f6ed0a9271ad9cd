"""Somebody else's model: a small Llama of Hugging Face's own class, tokenizer and Trainer, on the standard library.

    python experiments/007_adopt/train_llama.py llama [--steps 1500]

Nothing of this project is used. The folder it writes is what `mtp import` is given.
"""

import argparse
import sysconfig
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments

CONTEXT, VOCABULARY = 256, 1024
SHAPE = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 2}  # fmt: skip


def texts() -> list[str]:
    """Every tenth module is left out, for whoever wants text that the model has not seen."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return [file.read_text(encoding="utf-8", errors="ignore") for i, file in enumerate(files) if i % 10]


def train_tokenizer(corpus: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def windows(corpus: list[str], tokenizer: PreTrainedTokenizerFast) -> list[dict[str, torch.Tensor]]:
    ids = [i for text in corpus for i in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    rows = torch.tensor(ids[: len(ids) // CONTEXT * CONTEXT]).view(-1, CONTEXT)
    return [{"input_ids": row, "labels": row} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args()
    torch.manual_seed(0)
    corpus = texts()
    tokenizer = train_tokenizer(corpus)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None, pad_token_id=None, **SHAPE,
        )
    )  # fmt: skip
    settings = TrainingArguments(
        output_dir=f"{args.folder}-trainer", max_steps=args.steps, per_device_train_batch_size=16, learning_rate=2e-3,
        lr_scheduler_type="cosine", warmup_steps=50, weight_decay=0.1, adam_beta2=0.95, max_grad_norm=1.0,
        logging_steps=100, save_strategy="no", report_to=[], use_cpu=not torch.cuda.is_available(), seed=0,
    )  # fmt: skip
    Trainer(model=model, args=settings, train_dataset=windows(corpus, tokenizer)).train()
    model.save_pretrained(args.folder)
    tokenizer.save_pretrained(args.folder)


if __name__ == "__main__":
    main()
