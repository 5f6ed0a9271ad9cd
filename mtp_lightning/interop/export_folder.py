"""The files of an exported folder: shards and their index, configuration, tokenizer; a folder that is there whole or
not at all."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor

from mtp_lightning.data.tokens.token_bytes import byte_alphabet
from mtp_lightning.data.transforms.infilling import STARCODER
from mtp_lightning.errors import InputError
from mtp_lightning.files import open_as_usual, write_json, write_text

END_OF_BYTES = "<|endoftext|>"
"""What byte 255, the end of a document, is called in the tokenizer of bytes: it is no part of any text."""
SIGNS = ("config.json", "params.json")
"""Files of which one is in every model's folder: `--force` replaces nothing else."""
INDEX = "model.safetensors.index.json"


@contextmanager
def new_folder(out: Path, force: bool) -> Iterator[Path]:
    """A folder beside `out` to write to, which takes its name when nothing was raised, and is gone otherwise.

    Raises:
        InputError: `out` is there, or where it should be there is no folder.
    """
    if not out.absolute().parent.is_dir():
        raise InputError(f"out: there is no folder '{out.absolute().parent}'")
    there = out.exists() or out.is_symlink()
    if there and not force:
        raise InputError(f"'{out}' exists: give another name, or --force true to replace it")
    if there and not (out.is_dir() and not out.is_symlink() and any((out / name).is_file() for name in SIGNS)):
        raise InputError(f"'{out}' is no folder of a model (none of {', '.join(SIGNS)} in it), and is not replaced")
    made, old = (out.absolute().with_name(f".{out.absolute().name}.{what}-{os.getpid()}") for what in ("new", "old"))
    try:
        made.mkdir()
        yield made
        if there:
            out.rename(old)
        try:
            made.rename(out)
        except BaseException:
            if there:
                old.rename(out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What safetensors says of a disk that is full, as the error that it is.

    Raises:
        OSError: with its number.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], shard_bytes: int) -> list[str]:
    """`model.safetensors`, or, above `shard_bytes`, numbered ones with an index of which tensor is where; their names.

    A tensor is never divided: a shard is larger where a single tensor is.
    """
    from safetensors.torch import save_file

    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    files = [
        "model.safetensors" if len(shards) == 1 else f"model-{i:05}-of-{len(shards):05}.safetensors"
        for i in range(1, len(shards) + 1)
    ]
    for file, shard in zip(files, shards):
        with disk_errors(folder / file):
            save_file(_apart(shard), folder / file, {"format": "pt"})
            open_as_usual(folder / file)
    if len(shards) > 1:
        where = {name: file for file, shard in zip(files, shards) for name in shard}
        total = sum(tensor.nbytes for tensor in tensors.values())
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
    return files


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous, and none in the memory of another: a module that has several names is written several times."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        tensor = tensor.contiguous()
        apart[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return apart


def write_config(folder: Path, config: Mapping[str, Any], eos_id: int | None, begin_ids: Sequence[int] = ()) -> None:
    """config.json and generation_config.json.

    Args:
        eos_id: the token that ends a text; None where there is no text.
        begin_ids: what every text begins with.
    """
    tokens = {"bos_token_id": begin_ids[0] if begin_ids else None, "eos_token_id": eos_id}
    write_json(folder / "config.json", {**config, **tokens})
    write_json(folder / "generation_config.json", {"do_sample": False, **tokens, "pad_token_id": eos_id})


def write_code(folder: Path, files: Mapping[str, str], family: str) -> None:
    """Files of `remote_code`, by their path in the folder, for layers of this family, without the line for our type
    checker."""
    for path, name in files.items():
        text = (resources.files(__package__) / "remote_code" / name).read_text(encoding="utf-8")
        text = text.removeprefix("# mypy: ignore-errors\n")
        (folder / path).parent.mkdir(exist_ok=True)
        write_text(folder / path, text.replace("Llama", family).replace("llama", family.lower()))


def write_tokenizer(
    folder: Path, state: Mapping[str, str], end_token: str | None, context: int, begin_ids: Sequence[int] = ()
) -> None:
    """tokenizer.json and tokenizer_config.json, for `AutoTokenizer`.

    Args:
        state: of our tokenizer.
        end_token: what it calls the end of a document; None for bytes.
        begin_ids: what every text begins with.
    """
    of_bytes = state["kind"] == "bytes"
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_BYTES if of_bytes else end_token,
        "pad_token": END_OF_BYTES if of_bytes else end_token,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    if of_bytes:
        config["split_special_tokens"] = True  # a text about the end token is no end
    elif begin_ids:
        names = {token["id"]: token["content"] for token in json.loads(state["json"])["added_tokens"]}
        config["bos_token"] = names.get(begin_ids[0])
    write_text(folder / "tokenizer.json", byte_tokenizer("infilling" in state) if of_bytes else state["json"])
    write_json(folder / "tokenizer_config.json", config)


def byte_tokenizer(infilling: bool = False) -> str:
    """A tokenizer.json whose tokens are bytes, with their values as ids: byte-level BPE without merges. Byte 255, which
    UTF-8 never has, is the end of a document; the tokens of infilling come after it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {character: byte for byte, character in enumerate(byte_alphabet()) if byte != 255}
    special = {END_OF_BYTES: 255} | ({name: 256 + i for i, name in enumerate(STARCODER)} if infilling else {})
    tokenizer = Tokenizer(models.BPE({**vocabulary, **special}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return str(tokenizer.to_str())
