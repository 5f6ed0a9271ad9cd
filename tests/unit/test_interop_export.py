"""`mtp export --to hf`: what `transformers` loads is the model; what does not fit is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_backbone
from torch import Tensor

from mtp_lightning.checkpoints.files import LoadedModel, save_safetensors
from mtp_lightning.cli import main
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer
from mtp_lightning.decoding.reference import decode_plainly, decode_speculatively
from mtp_lightning.interop import export_hf
from mtp_lightning.interop.export_gate import loaded, their_logits
from mtp_lightning.model.config import HeadsConfig, RopeScaling
from mtp_lightning.model.heads import Join
from mtp_lightning.model.mtp import MTPModel

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("default")  # of transformers' own


def trained(heads: HeadsConfig, **backbone: object) -> MTPModel:
    """A random model whose norms are not ones, and whose states are as large as those of a trained one."""
    torch.manual_seed(0)
    model = MTPModel(tiny_backbone(**{"vocab_size": 256, "n_layers": 8, "n_heads": 4} | backbone), heads).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight * 10 if weight.dim() > 1 else 1 + 0.2 * torch.randn_like(weight))
        for name, bias in model.named_parameters():
            if name.endswith("bias"):
                bias -= 1
    return model


def write_exported(folder: Path, exported: export_hf.Exported) -> Path:
    from mtp_lightning.interop.export_folder import write_code, write_config, write_tensors

    folder.mkdir()
    write_tensors(folder, exported.tensors, 10**9)
    write_config(folder, exported.config | {"max_position_embeddings": 64}, None)
    write_code(folder, export_hf.code_files(exported), exported.family)
    return folder


def save(path: Path, model: MTPModel, tokenizer: ByteTokenizer | None = None) -> Path:
    save_safetensors(LoadedModel(path, model, tokenizer or ByteTokenizer(), 7, 64, None), path)
    return path


def export(tmp_path: Path, model: MTPModel, *arguments: str) -> Path:
    out = tmp_path / "out"
    assert main(["export", str(save(tmp_path / "m.safetensors", model)), str(out), "--to", "hf", *arguments]) == 0
    return out


def true_logits(model: MTPModel, tokens: Tensor, n: int) -> Tensor:
    T = tokens.shape[1] - n
    return model.logits(tokens[:, :T], None, torch.stack([tokens[:, i : i + T] for i in range(1, n + 1)]))


CASES = {
    **{
        f"{kind} {n}": (HeadsConfig(n_future=n, kind=kind), {})
        for kind in ("sequential", "recurrent")
        for n in (2, 3, 4)
    },
    "sequential, normed": (HeadsConfig(n_future=4, kind="sequential", norms="own"), {"tie_embeddings": True}),
    "recurrent, normed": (HeadsConfig(n_future=3, kind="recurrent", norms="own"), {}),
    "sequential, + layers": (HeadsConfig(n_future=3, kind="sequential", match="none"), {}),
    "recurrent, grouped, tied": (HeadsConfig(n_future=3, kind="recurrent"), {"n_kv_heads": 2, "tie_embeddings": True}),
    "parallel, grouped": (HeadsConfig(n_future=4), {"n_kv_heads": 1}),
    "parallel, tied": (HeadsConfig(n_future=2, match="none"), {"tie_embeddings": True}),
    "parallel, unembeddings": (HeadsConfig(n_future=3, replicate_unembedding=True), {"vocab_size": 67}),
    "parallel, two layers a head": (HeadsConfig(n_future=2, layers=2), {}),
    "causal": (HeadsConfig(n_future=3, kind="causal"), {}),
    "linear": (HeadsConfig(n_future=3, kind="linear"), {}),
    "sequential Qwen3": (HeadsConfig(n_future=3, kind="sequential"), {"qk_norm": True, "head_dim": 6, "n_kv_heads": 2}),
    "recurrent Qwen2, yarn": (
        HeadsConfig(n_future=3, kind="recurrent"),
        {"attention_bias": "qkv", "tie_embeddings": True, "rope_scaling": RopeScaling("yarn", 4.0, 16)},
    ),
    "sequential Mistral": (HeadsConfig(n_future=2, kind="sequential"), {"n_heads": 3, "head_dim": 10}),
    "parallel Qwen3": (HeadsConfig(n_future=3), {"qk_norm": True}),
    "causal Qwen2, llama3": (
        HeadsConfig(n_future=3, kind="causal"),
        {"attention_bias": "qkv", "rope_scaling": RopeScaling("llama3", 8.0, 16)},
    ),
    "linear Qwen3, linear": (
        HeadsConfig(n_future=2, kind="linear"), {"qk_norm": True, "rope_scaling": RopeScaling("linear", 2.0)},
    ),
    "one": (HeadsConfig(), {"n_kv_heads": 2, "tie_embeddings": True}),
    "one linear": (HeadsConfig(kind="linear"), {}),
}  # fmt: skip
QUICK = (
    "sequential 3", "recurrent 4", "sequential Qwen3", "recurrent Qwen2, yarn", "sequential Mistral",
    "sequential, normed", "recurrent, normed", "parallel, grouped", "parallel, unembeddings", "causal Qwen2, llama3",
    "linear",
)  # fmt: skip


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_every_head_is_the_same_there_and_decodes_the_same_text(case: str, tmp_path: Path) -> None:
    heads, backbone = CASES[case]
    model, n = trained(heads, **backbone), heads.n_future
    teach(model)
    exported = export_hf.export_model(model)
    folder = write_exported(tmp_path / "out", exported)
    tokens = torch.randint(0, model.config.vocab_size, (2, 40 + n), generator=torch.Generator().manual_seed(1))
    prompt = tokens[:1, :9]
    with torch.no_grad(), loaded(folder) as theirs:
        found = their_logits(theirs, exported, tokens)
        wanted = true_logits(model, tokens, n)
        assert found.shape == wanted.shape
        assert (found[0] - wanted[0]).abs().max() <= 1e-5 * wanted[0].abs().max()
        assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max(), "the epsilon of the standard's second norm"
        forwards = [0]
        theirs.model.layers[0].register_forward_hook(lambda *_: forwards.__setitem__(0, forwards[0] + 1))
        own = {"custom_generate": str(folder), "trust_remote_code": True}
        ways = {"standard": {"use_mtp": True}, "own": own, "llama": {}}[exported.layout]
        text = theirs.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False, pad_token_id=0, **ways
        )
    assert text[0, 9:].tolist() == decode_plainly(model, prompt[0], 24)
    if exported.layout != "llama":
        ours = decode_speculatively(model, prompt[0], 24, n)
        assert forwards[0] == 1 + len(ours.forwards)
        assert n == 1 or heads.kind == "linear" or forwards[0] < 20


def teach(model: MTPModel) -> None:
    """Embedding and unembedding alike: the model repeats tokens, and so do the drafts."""
    model.embedding.weight.data *= 3
    model.unembedding.weight.data = model.embedding.weight.data * 1.0
    for weights in model.further_unembeddings:
        weights.weight.data = model.embedding.weight.data * 1.0
    for part in model.modules():
        if isinstance(part, Join):
            part.projection.weight.data = torch.eye(2 * model.config.dim)[model.config.dim :] * 3


BEGUN = (
    "| Initialised from | fit/step-30.ckpt (weights 0123abcd) |",
    "| Average of | soup/a.ckpt (0.25) |",
    "| Imported from | the layout hf, llama |",
)


def test_a_folder_says_what_it_is_and_what_was_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = trained(HeadsConfig(n_future=3, kind="sequential"))
    run = tmp_path / "mine"
    (run / "checkpoints").mkdir(parents=True)
    metrics = {"val/loss/head_1": 1.25, "perf/peak_memory_bytes": 9.0}
    (run / "result.json").write_text(json.dumps({"step": 7, "tokens": 1000, "metrics": metrics}))
    lineage = {
        "parent": {"name": "fit/step-30.ckpt", "weights": "0123abcd"},
        "parents": [{"path": f"{tmp_path}/soup/a.ckpt", "share": 0.25, "step": 3, "sha256": "1"}],
        "imported": {"layout": "hf", "model_type": "llama"},
    }
    first = run / "first.safetensors"
    save_safetensors(LoadedModel(first, model, ByteTokenizer(), 7, 64, None, lineage=lineage), first)
    source = run / "checkpoints" / "a.safetensors"
    assert main(["export", str(first), str(source)]) == 0
    first.unlink()
    out = tmp_path / "out"
    assert main(["export", str(source), str(out), "--to", "hf", "--shard_gb", "0.0001", "--dtype", "bfloat16"]) == 0
    card = (out / "README.md").read_text()
    for says in ("use_mtp=True", "| 3 |", "`val/loss/head_1` | 1.25", "1,000", *BEGUN, "mine/a.safetensors"):
        assert says in card
    assert "perf/" not in card
    assert str(tmp_path) not in card
    said = capsys.readouterr().out
    assert "`generate(use_mtp=True)` writes our greedy text" in said
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    for name, file in index["weight_map"].items():
        assert load_file(out / file)[name].dtype == torch.bfloat16
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    usual = tmp_path / "usual"
    usual.touch()
    assert {path.stat().st_mode for path in out.iterdir()} == {usual.stat().st_mode}, "who may read one may read all"
    from transformers import LlamaForCausalLM

    plain = LlamaForCausalLM.from_pretrained(out)  # a server that knows no heads reads the model itself
    assert sum(p.numel() for p in plain.parameters()) < sum(p.numel() for p in model.parameters()) + 256 * 32 * 2


@pytest.mark.parametrize(
    "kind",
    [
        "anticausal",
        "order",
        "none",
        "recurrent",
        "linear",
        "markov",
        "next_latent",
        "fetch",
        "registers",
        "mixture",
        "future_summary",
    ],
)
def test_head_1_alone_goes_out_of_every_kind(kind: str, tmp_path: Path) -> None:
    model = trained(HeadsConfig(n_future=3, kind=kind))
    out = export(tmp_path, model, "--heads", "1")
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == ("mtp_linear" if kind == "linear" else "llama")
    assert (out / "modeling_mtp_lightning.py").is_file() == (kind == "linear")
    tokens = torch.randint(0, 256, (1, 20))
    with loaded(out) as theirs, torch.no_grad():
        wanted = model.unembedding(model.next_token_states(tokens))
        torch.testing.assert_close(theirs(tokens).logits, wanted, atol=1e-5, rtol=1e-5)


REFUSED: dict[str, tuple[HeadsConfig, list[str], str]] = {
    "anticausal": (HeadsConfig(n_future=2, kind="anticausal"), [], "model.heads.kind is 'anticausal'"),
    "markov": (HeadsConfig(n_future=2, kind="markov"), [], "model.heads.kind is 'markov'"),
    "next_latent": (HeadsConfig(n_future=2, kind="next_latent"), [], "model.heads.kind is 'next_latent'"),
    "fetch": (HeadsConfig(n_future=2, kind="fetch"), [], "model.heads.kind is 'fetch'"),
    "mixture": (HeadsConfig(n_future=2, kind="mixture"), [], "model.heads.kind is 'mixture'"),
    "summary": (HeadsConfig(n_future=2, kind="future_summary"), [], "model.heads.kind is 'future_summary'"),
    "order": (HeadsConfig(n_future=2, kind="order"), [], "model.heads.kind is 'order'"),
    "registers": (HeadsConfig(n_future=2, kind="registers"), [], "model.heads.kind is 'registers'"),
    "none": (HeadsConfig(n_future=2, kind="none"), [], "model.heads.kind is 'none'"),
    "gaps": (HeadsConfig(n_future=2, offsets=(1, 3)), [], "model.heads.offsets is [1, 3]"),
    "layers": (HeadsConfig(n_future=2, kind="sequential", layers=2), [], "model.heads.layers is 2"),
    "unembeddings": (
        HeadsConfig(n_future=2, kind="recurrent", replicate_unembedding=True), [], "model.heads.replicate_unembedding",
    ),
    "biases and norms": (HeadsConfig(), [], "model.backbone.attention_bias 'qkv' together with qk_norm"),
    "two of three": (HeadsConfig(n_future=3), ["--heads", "2"], "heads is 2: this model has 3"),
    "shards": (HeadsConfig(), ["--shard_gb", "0"], "shard_gb is 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_format_cannot_hold_is_refused_by_name(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heads, arguments, says = REFUSED[case]
    features = {"attention_bias": "qkv", "qk_norm": True} if case == "biases and norms" else {}
    source = save(tmp_path / "m.safetensors", trained(heads, **features))
    assert main(["export", str(source), str(tmp_path / "out"), "--to", "hf", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert arguments or features or "--heads 1" in error
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_what_is_there_is_not_replaced_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = save(tmp_path / "m.safetensors", trained(HeadsConfig())), tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("mine")
    command = ["export", str(source), str(out), "--to", "hf", "--verify", "false"]
    assert main(command) == 2
    assert "exists: give another name" in capsys.readouterr().err
    assert main([*command, "--force", "true"]) == 2, "no folder of a model"
    assert (out / "precious").read_text() == "mine"
    (out / "config.json").write_text("{}")
    assert main([*command, "--force", "true"]) == 0
    assert not (out / "precious").exists()
    assert "Nothing was compared" in capsys.readouterr().out
    assert "`--verify false`" in (out / "README.md").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors", "out"]


def test_custom_generate_samples_stops_and_refuses(tmp_path: Path) -> None:
    model = trained(HeadsConfig(n_future=3))
    teach(model)
    folder = write_exported(tmp_path / "out", export_hf.export_model(model))
    prompt = torch.tensor([[5, 6, 7]])
    arguments: dict[str, Any] = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 12, "pad_token_id": 0}
    with loaded(folder) as theirs:
        whole = theirs.generate(prompt, **arguments)[0, 3:].tolist()
        assert whole == decode_plainly(model, prompt[0], 12)
        stopped = theirs.generate(prompt, **arguments, eos_token_id=whole[4])[0, 3:].tolist()
        assert stopped == whole[: whole.index(whole[4]) + 1]
        texts = []
        for heads_used in (1, 3):
            torch.manual_seed(3)
            out = theirs.generate(
                prompt, **arguments, do_sample=True, heads_used=heads_used, return_dict_in_generate=True
            )
            texts.append(out.sequences.tolist())
        assert texts[0] == texts[1], "the same draws, whatever was drafted"
        for wrong, says in (({"heads_used": 4}, "has 3 prediction heads"), ({"num_beams": 2}, "num_beams has to be 1")):
            with pytest.raises(ValueError, match=says):
                theirs.generate(prompt, **arguments, **wrong)
        arguments["attention_mask"] = torch.ones(2, 3, dtype=torch.long)
        with pytest.raises(ValueError, match="takes one text without padding"):
            theirs.generate(prompt.repeat(2, 1), **arguments)


def test_the_code_of_a_folder_is_in_the_wheel(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    from hatchling.builders.wheel import WheelBuilder

    root = Path(export_hf.__file__).parents[2]
    builder = WheelBuilder(str(root))
    files = {file.distribution_path for file in builder.recurse_included_files()}
    for name in ("modeling_mtp_llama.py", "modeling_mtp_lightning.py", "generate.py"):
        assert f"mtp_lightning/interop/remote_code/{name}" in files
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("dtype", ["keep", "float32"])
def test_a_model_in_half_precision_goes_out_as_it_is(dtype: str, tmp_path: Path) -> None:
    out = export(tmp_path, trained(HeadsConfig(n_future=2, kind="sequential")).bfloat16(), "--dtype", dtype)
    wanted = torch.bfloat16 if dtype == "keep" else torch.float32
    assert {weight.dtype for weight in load_file(out / "model.safetensors").values()} == {wanted}
    assert json.loads((out / "config.json").read_text())["dtype"] == str(wanted).removeprefix("torch.")
