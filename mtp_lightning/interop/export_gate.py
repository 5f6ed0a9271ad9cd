"""The gate of `mtp export --to hf`: the folder, loaded with `transformers`' own classes, is the model that it was made
from. What does not pass never gets its name."""

import copy
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from mtp_lightning.errors import InputError, UnprovenError
from mtp_lightning.interop.export_hf import Exported, folds
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.shapes import Float, Int

LEAST_VERSION = (5, 14)
"""Of `transformers`: the first with the MTP standard."""
ROUNDING = 2e-4
"""Largest difference of two float32 computations of the same logits, as a share of the largest logit."""
POSITIONS, PROMPT, NEW_TOKENS = 128, 16, 32
TEXTS = (
    "def main():\n\treturn 0\r\n",
    "na\u00efve caf\u00e9, \u6f22\u5b57, \U0001f469\u200d\U0001f4bb",
    "  two  spaces, a \x00 and 1234567890",
)


@runtime_checkable
class TextTokenizer(Protocol):
    """What the gate asks of ours."""

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


class Head(NamedTuple):
    """How far the logits of one head are apart, at most."""

    written: float
    """From those of the weights that were written, computed here."""
    trained: float
    """From those of the model as it was trained: with the rounding to another precision and, in the standard, the
    epsilon of its second norm."""
    largest: float
    """The largest logit."""


class Proof(NamedTuple):
    """What was compared, and how closely."""

    by: str
    """Whose code computed the logits of what was written."""
    heads: list[Head]
    texts: list[str]
    """What was found of texts, in sentences."""


def why_no_transformers() -> str:
    """What keeps it from loading an export: not installed, or too old; empty where nothing does."""
    try:
        import transformers
    except ImportError:
        return "transformers is not installed: pip install 'mtp-lightning[interop]'"
    version = str(transformers.__version__)
    if tuple(int(part) for part in version.split(".")[:2]) < LEAST_VERSION:
        return f"transformers {version} is installed, and 5.14 is needed: pip install 'mtp-lightning[interop]'"
    return ""


def check_transformers() -> str:
    """Its version.

    Raises:
        InputError: it is not installed, or too old.
    """
    if reason := why_no_transformers():
        raise InputError(
            f"verify: what is exported is compared with transformers' classes, and {reason}, or --verify false"
        )
    import transformers

    return str(transformers.__version__)


@torch.no_grad()
def prove(
    folder: Path, model: MTPModel, exported: Exported, tokenizer: TextTokenizer | None, begin_ids: Sequence[int] = ()
) -> Proof:
    """Load the folder and compare: every tensor, the logits of every head, the tokenizer, a greedy text.

    The code in the folder is run: only for one that was just written here.

    Args:
        begin_ids: what every text of the model begins with.

    Raises:
        UnprovenError: a difference beyond rounding.
    """
    version = check_transformers()
    compare_tensors(folder, exported)
    generator = torch.Generator().manual_seed(0)
    context = min(POSITIONS, exported.config.get("max_position_embeddings", POSITIONS))
    tokens = torch.randint(0, model.config.vocab_size, (1, context + exported.heads), generator=generator)
    by, ours = f"transformers {version}", as_written(model, exported)
    with loaded(folder) as theirs:
        found = their_logits(theirs, exported, tokens)
        heads = compare_heads(by, found, our_logits(ours, exported, tokens), trained_logits(model, exported, tokens))
        texts = [] if tokenizer is None else [compare_tokenizer(folder, tokenizer, begin_ids)]
        prompt = tokens[:, :PROMPT]
        if tokenizer is not None:
            prompt = torch.tensor([[*begin_ids, *tokenizer.encode(TEXTS[0])]])
        return Proof(by, heads, texts + compare_texts(folder, theirs, ours, exported, prompt))


def compare_heads(
    by: str,
    found: Float[Tensor, "N B T V"],
    written: Float[Tensor, "N B T V"],
    trained: Float[Tensor, "N B T V"],
) -> list[Head]:
    """Logits of what was written, as others compute them, beside ours from the same weights and from those trained.

    Raises:
        UnprovenError: a difference beyond rounding, or a NaN.
    """
    heads = []
    for number, (a, b, c) in enumerate(zip(found, written, trained), start=1):
        heads.append(Head(float((a - b).abs().max()), float((a - c).abs().max()), float(b.abs().max())))
        if not heads[-1].written <= ROUNDING * heads[-1].largest:  # NaN too
            raise UnprovenError(
                f"the logits of head {number} differ by {heads[-1].written:.2g}, of at most {heads[-1].largest:.3g}, "
                f"when {by} computes them: nothing was exported"
            )
    return heads


def compare_tensors(folder: Path, exported: Exported) -> None:
    """Every tensor of the files is bit by bit what was to be written.

    Raises:
        UnprovenError: one is not.
    """
    from safetensors import safe_open

    missing = dict(exported.tensors)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if name not in missing or not torch.equal(file.get_tensor(name), missing.pop(name)):
                    raise UnprovenError(f"the tensor '{name}' is not what was written: nothing was exported")
    if missing:
        raise UnprovenError(f"the tensor '{next(iter(missing))}' is not in the files: nothing was exported")


@contextmanager
def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> Iterator[Any]:
    """The folder's model, as `transformers` loads it. What that library copies of the folder's code into its
    cache is gone afterwards."""
    import transformers
    from transformers.utils import logging as their_logging

    logging: Any = their_logging
    auto: Any = transformers.AutoModelForCausalLM
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    before = set(sys.modules)
    try:
        yield auto.from_pretrained(folder, trust_remote_code=True, dtype=dtype, local_files_only=True).eval()
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        for name in {name for name in sys.modules if name.startswith("transformers_modules.")} - before:
            parents = Path(sys.modules.pop(name).__file__ or "").parents
            for copied in (path for path in parents if path.parent.name == "transformers_modules"):
                shutil.rmtree(copied, ignore_errors=True)


def their_logits(theirs: Any, exported: Exported, tokens_BL: Int[Tensor, "B L"]) -> Float[Tensor, "N B T V"]:
    """Of every head, as `transformers` computes them."""
    n = exported.heads
    tokens_BT = tokens_BL[:, :-n]
    T = tokens_BT.shape[1]
    if exported.layout == "own":
        logits: Tensor = theirs.head_logits(tokens_BT)
        return logits
    states = [theirs.model(tokens_BT).last_hidden_state]
    if n > 1:
        from transformers.modeling_layers import MtpModel

        mtp = MtpModel.from_pretrained(theirs)
        for i in range(1, n):
            positions = torch.arange(i, i + T)[None]
            states.append(mtp.forward_layer(i - 1, states[-1], positions, None, input_ids=tokens_BL[:, i : i + T]))
    return torch.stack([theirs.lm_head(state) for state in states])


def as_written(model: MTPModel, exported: Exported) -> MTPModel:
    """Our model with the numbers that were written: the norm folded, everything rounded; in float32."""
    folded = exported.layout == "standard" and folds(model)
    kinds = {*exported.dtypes.values(), *(weight.dtype for weight in model.parameters())}
    if not folded and kinds == {torch.float32}:
        return model
    made = copy.deepcopy(model)
    if folded:
        made.unembedding.weight = torch.nn.Parameter(model.unembedding.weight.float() * model.norm.weight.float())
        made.norm.weight.fill_(1.0)
    for name, weight in made.named_parameters():
        weight.data = weight.data.to(exported.dtypes.get(name, weight.dtype)).float()
    return made


def our_logits(model: MTPModel, exported: Exported, tokens_BL: Int[Tensor, "B L"]) -> Float[Tensor, "N B T V"]:
    """Of every head. In the standard a further head gets the state before it after the norm, and norms it again."""
    if exported.layout != "standard" or model.heads_config.norms == "own":
        return trained_logits(model, exported, tokens_BL)
    n = exported.heads
    T = tokens_BL.shape[1] - n
    rotary = model.rotary(torch.arange(T))
    h_BTD = model.norm(model.heads.first(model.run_trunk(tokens_BL[:, :T], rotary), (rotary, None)))
    states = [h_BTD]
    for i in range(1, n):
        e_BTD = model.embedding(tokens_BL[:, i : i + T])
        h_BTD = model.norm(model.heads[min(i, len(model.heads) - 1)](h_BTD, e_BTD, rotary))
        states.append(h_BTD)
    return F.linear(torch.stack(states), model.unembedding.weight)


def trained_logits(model: MTPModel, exported: Exported, tokens_BL: Int[Tensor, "B L"]) -> Float[Tensor, "N B T V"]:
    """Of every head that is exported, as the model was trained, in float32."""
    if model.embedding.weight.dtype != torch.float32:
        model = copy.deepcopy(model).float()
    T = tokens_BL.shape[1] - exported.heads
    if exported.heads == 1:
        return model.unembedding(model.next_token_states(tokens_BL[:, :T]))[None]  # type: ignore[no-any-return]
    ahead = torch.stack([tokens_BL[:, i : i + T] for i in range(1, exported.heads + 1)])
    return model.logits(tokens_BL[:, :T], None, ahead)


def compare_tokenizer(folder: Path, ours: TextTokenizer, begin_ids: Sequence[int] = ()) -> str:
    """`AutoTokenizer` gives our ids, and the text back; by default it puts before them what the model's texts begin
    with.

    Raises:
        UnprovenError: it does not.
    """
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=True)
    for text in TEXTS:
        ids = ours.encode(text)
        if theirs(text, add_special_tokens=False)["input_ids"] != ids:
            raise UnprovenError(f"AutoTokenizer has other ids than ours for {text!r}: nothing was exported")
        if theirs.decode(ids, skip_special_tokens=True) != ours.decode(ids):
            raise UnprovenError(f"AutoTokenizer decodes {ids} to another text than ours: nothing was exported")
    begin = list(begin_ids)
    if theirs(TEXTS[0])["input_ids"] != [*begin, *ours.encode(TEXTS[0])]:
        return (
            f"AutoTokenizer gives the model's ids with `add_special_tokens=False`{f' after {begin}' if begin else ''}; "
            "by default it adds other tokens around a text, as its tokenizer.json says"
        )
    first = f" after {begin}, which its texts begin with" if begin else ""
    return f"AutoTokenizer gives the model's ids{first}, and decodes them to the same texts"


def compare_texts(
    folder: Path, theirs: Any, model: MTPModel, exported: Exported, prompt: Int[Tensor, "B T"]
) -> list[str]:
    """A greedy text, plainly and by drafts of the heads.

    Raises:
        UnprovenError: a token of it is not our model's best, by more than rounding.
    """
    ways: dict[str, dict[str, Any]] = {"generate": {}}
    if exported.layout == "standard":
        ways["generate(use_mtp=True)"] = {"use_mtp": True}
    if exported.layout == "own":
        ways = {"generate(heads_used=1)": {"heads_used": 1}, "generate with all heads": {}}
    said = []
    for name, arguments in ways.items():
        if exported.layout == "own":
            arguments |= {"custom_generate": str(folder), "trust_remote_code": True}
        theirs.generation_config.eos_token_id = None
        text = theirs.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0,
            **arguments,
        )  # fmt: skip
        logits = model.unembedding(model.next_token_states(text[:, :-1]))[0, prompt.shape[1] - 1 :]
        chosen = logits.gather(-1, text[0, prompt.shape[1] :, None])[:, 0]
        gap = float((logits.amax(-1) - chosen).max())
        if text.shape[1] != prompt.shape[1] + NEW_TOKENS or not gap <= ROUNDING * float(logits.abs().max()):
            raise UnprovenError(f"{name} of transformers writes another greedy text than ours: nothing was exported")
        said.append(f"`{name}` writes our greedy text ({NEW_TOKENS} tokens)")
    return said
