"""Tokens per forward by kind of heads, domain and temperature: results.csv, a table on the screen, and figure.png.

python table.py ANSWERS: the folder with what `mtp evaluate ... --json` wrote, SIGNATURE-DOMAIN.json; the cells' folders
are in `runs`, as a grid leaves them.
"""

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

import matplotlib.pyplot as plt
import yaml

Key = tuple[str, str, float]


def main(answers: Path) -> None:
    rows = [row for path in sorted(answers.glob("*.json")) for row in read(path)]
    with Path("results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    found: dict[Key, list[float]] = defaultdict(list)
    for row in rows:
        found[row["kind"], row["domain"], row["temperature"]].append(row["tokens_per_forward"])
    for (kind, domain, temperature), values in sorted(found.items()):
        print(f"| {kind} | {domain} | {temperature:g} | {mean(values):.2f} ± {stdev(values):.2f} |")
    draw(found)


def read(path: Path) -> list[dict]:
    signature, _, domain = path.stem.rpartition("-")
    config = yaml.safe_load((Path("runs") / signature / "config.yaml").read_text())
    return [
        {
            "kind": config["model"]["heads"]["kind"],
            "seed": config["seed_everything"],
            "domain": domain,
            "temperature": at["temperature"],
            "tokens_per_forward": at["tokens_per_forward"],
            **{f"head_{head}": at["acceptance"].get(str(head)) for head in (2, 3, 4)},
        }
        for at in json.loads(path.read_text())["temperatures"]
    ]


def draw(found: dict[Key, list[float]]) -> None:
    kinds, domains = (sorted({key[i] for key in found}) for i in range(2))
    figure, panels = plt.subplots(1, len(kinds), figsize=(4 * len(kinds), 3.6), sharey=True, layout="constrained")
    for panel, kind in zip(panels, kinds):
        for domain in domains:
            points = {t: values for (k, d, t), values in sorted(found.items()) if (k, d) == (kind, domain)}
            heights, spread = [mean(v) for v in points.values()], [stdev(v) for v in points.values()]
            panel.errorbar([*points], heights, spread, marker="o", capsize=3, label=domain)
        panel.set(title=kind, xlabel="temperature")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("tokens per forward (of 4)")
    panels[0].legend()
    figure.savefig("figure.png", dpi=120)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
