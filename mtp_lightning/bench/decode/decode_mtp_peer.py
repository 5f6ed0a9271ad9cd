"""The peer of `mtp bench decode --peer transformers_mtp`: `generate(use_mtp=True)` on the same model, exported."""

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtp_lightning.bench.decode.decode_contenders import Clock, Decode, Run
from mtp_lightning.errors import InputError
from mtp_lightning.model.mtp import MTPModel


def why_not(model: MTPModel) -> str:
    """What keeps it from being measured; empty where nothing does."""
    from mtp_lightning.interop.export_gate import why_no_transformers
    from mtp_lightning.interop.export_hf import export_model

    if reason := why_no_transformers():
        return reason
    try:
        if export_model(model).layout == "standard":
            return ""
    except InputError as error:
        return str(error)
    heads = f"{model.n_future} of kind '{model.heads_config.kind}'"
    return f"it decodes 'sequential' and 'recurrent' heads, and this model has {heads}"


@contextmanager
def transformers_mtp(model: MTPModel, dtype: torch.dtype, new_tokens: int, clock: Clock) -> Iterator[Decode]:
    """Its drafts are of all further heads, its batches of one text. It reads the heads from disk in every call of
    `generate`; here they are read once, before the clock runs, since decoding is what is measured. Of a model of which
    `why_not` says nothing.
    """
    from mtp_lightning.interop.export_folder import write_code, write_config, write_tensors
    from mtp_lightning.interop.export_gate import loaded
    from mtp_lightning.interop.export_hf import code_files, export_model

    exported = export_model(model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "exported"
        folder.mkdir()
        write_tensors(folder, exported.tensors, 2**60)
        write_config(folder, exported.config | {"max_position_embeddings": 2**20}, None)
        write_code(folder, code_files(exported), exported.family)
        with loaded(folder, dtype) as theirs:
            yield _decode(theirs.to(model.embedding.weight.device), new_tokens, clock)


def _decode(theirs: Any, new_tokens: int, clock: Clock) -> Decode:
    from transformers.modeling_layers import MtpModel

    heads: Any = MtpModel.from_pretrained(theirs)
    forwards: list[None] = []
    theirs.model.layers[0].register_forward_pre_hook(lambda *_: forwards.append(None))

    def run(prompts: Sequence[Tensor]) -> Run:
        """
        Raises:
            ValueError: several prompts, which transformers refuses.
        """
        ids_BT = torch.stack(list(prompts))
        started = clock()
        with warnings.catch_warnings(), torch.inference_mode(), _read_once(heads, forwards.clear):
            warnings.simplefilter("ignore")  # its own deprecations
            out_BT = theirs.generate(
                ids_BT, attention_mask=torch.ones_like(ids_BT), max_new_tokens=new_tokens, do_sample=False,
                pad_token_id=0, use_mtp=True,
            )  # fmt: skip
        return Run(out_BT[:, ids_BT.shape[1] :].tolist(), clock() - started, forwards=len(forwards))

    return run


@contextmanager
def _read_once(heads: Any, before: Callable[[], None]) -> Iterator[None]:
    from transformers.modeling_layers import MtpModel

    before()
    real = MtpModel.from_pretrained
    try:
        MtpModel.from_pretrained = lambda *_, **__: heads  # type: ignore[method-assign]
        yield
    finally:
        MtpModel.from_pretrained = real  # type: ignore[method-assign]
