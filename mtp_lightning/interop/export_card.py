"""The model card of an exported folder: what it is, how it is used, what was compared, how it was trained."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mtp_lightning.files import read_json, read_state
from mtp_lightning.interop.export_gate import Proof
from mtp_lightning.interop.export_hf import Exported
from mtp_lightning.model.config import HeadsConfig

SHOWN = re.compile(r"(val|eval|probe)/|decode/(?!entropy_|.*simulated_accept)")
"""Metrics of a run that a card repeats: those of quality, without what a validation says of every draft."""
USES = {
    "llama": """
model = AutoModelForCausalLM.from_pretrained(FOLDER)
out = model.generate(**prompt, max_new_tokens=100)
""",
    "standard": """
model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)  # 15 lines, to find the heads
out = model.generate(**prompt, max_new_tokens=100, use_mtp=True)  # the text of plain decoding, in fewer forwards
""",
    "own": """
model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
out = model.generate(**prompt, max_new_tokens=100)  # drafts and verifies; heads_used=1 decodes plainly
""",
}
"""How a layout is decoded. `generate` of `own` is `custom_generate/generate.py`."""


class Source(NamedTuple):
    """Where the weights come from."""

    name: str
    step: int
    metrics: dict[str, float]
    """Of the run's result; empty where it is not there."""
    facts: dict[str, str]
    """What else its folder says: tokens seen, the MLflow run, parents."""


def read_source(checkpoint: Path, step: int, lineage: Mapping[str, Any]) -> Source:
    """What a checkpoint and the folder of its run say of themselves. Nothing of it is needed: it may lie anywhere.

    Args:
        lineage: `LoadedModel.lineage`.

    Raises:
        DamagedError: a file of a run that is damaged.
    """
    folder = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    result = read_json(folder / "result.json") or {}
    metrics = {k: v for k, v in dict(result.get("metrics") or {}).items() if SHOWN.match(k)}
    facts = {}
    if result.get("step") != step:
        metrics = {}  # of a later step than these weights
    elif result.get("tokens"):
        facts["Tokens seen"] = f"{result['tokens']:,}"
    run_id = read_state(folder / "mlflow_run_id")
    if run_id:
        facts["MLflow run"] = run_id.strip()
    facts |= _begun_from(lineage)
    return Source(f"{folder.name}/{checkpoint.name}", step, metrics, facts)


def _begun_from(lineage: Mapping[str, Any]) -> dict[str, str]:
    """Names without the folders of whoever trained it; the digests say which weights they were."""
    facts = {}
    if parent := lineage.get("parent"):
        facts["Initialised from"] = f"{parent['name']} (weights {parent['weights']})"
    if parents := lineage.get("parents"):
        named = ("/".join(Path(one["path"]).parts[-2:]) + f" ({one['share']:.3g})" for one in parents)
        facts["Average of"] = ", ".join(named)
    if imported := lineage.get("imported"):
        facts["Imported from"] = f"the layout {imported['layout']}, {imported.get('model_type') or 'as released'}"
    return facts


def card(title: str, heads: HeadsConfig, exported: Exported, proof: Proof | None, source: Source) -> str:
    """README.md."""
    all_heads = "1 prediction head" if exported.heads == 1 else f"{exported.heads} prediction heads"
    kept = f"head 1 of {heads.n_future}" if exported.heads < heads.n_future else all_heads
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [multi-token-prediction]\n---",
        f"# {title}",
        f"A Llama-like model with {kept} of kind `{heads.kind}` (multi-token prediction, arXiv 2404.19737), trained "
        f"with mtp-lightning to step {source.step:,} and exported from `{source.name}`.",
        "## Use",
        _use(exported),
        "## What was compared",
        "Nothing: `--verify false`." if proof is None else proven(proof),
        "## What was changed",
        "\n".join(f"- {change}" for change in exported.changes) or "Only names.",
    ]
    if source.facts or source.metrics:
        rows = [(name, value) for name, value in source.facts.items()]
        rows += [(f"`{name}`", f"{value:.5g}") for name, value in sorted(source.metrics.items())]
        parts += ["## Training", table(["", ""], rows)]
    return "\n\n".join(parts) + "\n"


def proven(proof: Proof) -> str:
    """What the gate found, as text."""
    rows = [
        (str(number), f"{head.written:.1e}", f"{head.trained:.1e}", f"{head.largest:.3g}")
        for number, head in enumerate(proof.heads, start=1)
    ]
    header = ["head", "from the weights as written", "from the model as trained", "largest logit"]
    said = [f"Largest differences of logits, computed by {proof.by} in float32:", table(header, rows)]
    return "\n\n".join([*said, "\n".join(f"- {text}." for text in proof.texts)]).rstrip()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _use(exported: Exported) -> str:
    trust = ", trust_remote_code=True" if "AutoConfig" in exported.config.get("auto_map", {}) else ""
    return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER{trust})
prompt = tokenizer("def main(", return_tensors="pt", return_token_type_ids=False)
{USES[exported.layout].strip()}
```"""
