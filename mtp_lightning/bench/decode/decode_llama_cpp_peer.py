"""The peer of `mtp bench decode --peer llama_cpp`: llama.cpp on the same weights, in float32, keys and values too."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from mtp_lightning.bench.decode.decode_contenders import Clock, Decode, Run
from mtp_lightning.errors import InputError
from mtp_lightning.interop import export_gguf, llama_cpp_model
from mtp_lightning.model.mtp import MTPModel

NAME = "llama_cpp"


def why_not(model: MTPModel, dtype: torch.dtype) -> str:
    """What keeps it from being measured; empty where nothing does."""
    if dtype != torch.float32:
        return "it is measured in float32 alone"
    if reason := llama_cpp_model.why_not() or export_gguf.why_not():
        return reason
    try:
        export_gguf.export_llama(model, 1)
    except InputError as error:
        return str(error)
    return ""


@contextmanager
def llama_cpp(model: MTPModel, new_tokens: int, room: int, threads: int, clock: Clock) -> Iterator[Decode]:
    """It decodes one text after the other, as its Python class takes no batch.

    Args:
        room: tokens of a prompt and its continuation.
    """
    exported = export_gguf.export_llama(model, 1)
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "model.gguf"
        export_gguf.write_gguf(file, model, exported, room, None, None)
        with llama_cpp_model.LlamaCpp(file, room, threads) as theirs:

            def run(prompts: Sequence[Tensor]) -> Run:
                ids = [prompt.tolist() for prompt in prompts]
                started = clock()
                texts = [theirs.continued(prompt, new_tokens) for prompt in ids]
                return Run(texts, clock() - started)

            yield run
