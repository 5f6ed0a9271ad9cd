"""A GGUF file run by llama.cpp, where the package `llama-cpp-python` is installed: float32 keys and values, no flash
attention, so that its texts can be compared with ours."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HOW_TO_INSTALL = "pip install llama-cpp-python"


def why_not() -> str:
    """What keeps it from running a file: not installed, or its library does not load; empty where nothing does."""
    try:
        importlib.import_module("llama_cpp")
    except ModuleNotFoundError:
        return f"llama-cpp-python is not installed: {HOW_TO_INSTALL}"
    except (ImportError, OSError, RuntimeError) as error:  # RuntimeError is its own, of a library
        return f"llama-cpp-python is installed and does not load: {error}"
    return ""


class LlamaCpp:
    """
    Args:
        room: tokens that a text may have.
    """

    def __init__(self, file: Path, room: int, threads: int) -> None:
        llama_cpp: Any = importlib.import_module("llama_cpp")
        float32 = 0  # GGML_TYPE_F32
        self._model: Any = llama_cpp.Llama(
            str(file), n_ctx=room, n_batch=min(room, 512), n_threads=threads, n_threads_batch=threads, type_k=float32,
            type_v=float32, flash_attn=False, n_gpu_layers=0, verbose=False,
        )  # fmt: skip
        self._logits = llama_cpp.llama_get_logits_ith
        self._context = self._model.ctx
        self._vocab_size = self._model.n_vocab()

    def __enter__(self) -> "LlamaCpp":
        return self

    def __exit__(self, *_: object) -> None:
        self._model.close()

    def continued(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        """The best next token, again and again."""
        import numpy as np

        model, tokens = self._model, list[int]()
        model.reset()
        model.eval(list(prompt))
        while True:
            logits = np.ctypeslib.as_array(self._logits(self._context, -1), shape=(self._vocab_size,))
            tokens.append(int(logits.argmax()))
            if len(tokens) == new_tokens:
                return tokens
            model.eval(tokens[-1:])
