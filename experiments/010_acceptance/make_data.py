"""The texts of three domains: what models are trained on, and the beginnings that they are asked to go on from.

python make_data.py TINYSTORIES.txt GSM8K.jsonl: folder `domains` with prose.jsonl and maths.jsonl to train on, and
ask-prose.jsonl and ask-maths.jsonl, whose documents are not among them. Code is the standard library and HumanEval.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

ASKED = 64
"""Documents of a domain that are kept for asking."""


def main(stories: Path, gsm8k: Path) -> None:
    prose = [text for text in stories.read_text(encoding="utf-8").replace("\n\n", " ").split("\n") if len(text) > 300]
    questions = [json.loads(line) for line in gsm8k.read_text(encoding="utf-8").splitlines()]
    out = Path("domains")
    out.mkdir()
    write(out / "prose.jsonl", ({"text": text} for text in prose[ASKED:]))
    write(out / "maths.jsonl", ({"text": f"Q: {row['question']}\nA: {row['answer']}"} for row in questions[ASKED:]))
    write(out / "ask-prose.jsonl", ({"prompt": text[:150], "completion": text[150:]} for text in prose[:ASKED]))
    asked = ({"prompt": f"Q: {row['question']}\nA:", "completion": row["answer"]} for row in questions[:ASKED])
    write(out / "ask-maths.jsonl", asked)


def write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
