"""Makes the adapter that ships with the program out of the recipe's run, its export and its scores.

    python examples/recipes/squad/run.py SQUAD --out RECIPE
    rag-finetune export RECIPE/run --to gguf-lora
    rag-app adapters add RECIPE/run --name candidate
    rag-app eval SQUAD/test_questions.jsonl --corpus SQUAD/test_corpus.jsonl --adapter candidate --json > SCORES.json
    rag-app eval SQUAD/test_questions.jsonl --corpus SQUAD/test_corpus.jsonl --adapter off --json > BASE.json
    python examples/recipes/squad/bundle.py RECIPE/run SCORES.json BASE.json

Paths of the machine that trained are left out.
"""

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from index import folders
from rag_app.adapters import manifest
from rag_app.adapters.registry import BUNDLED

HERE = Path(__file__).parent
NAME = "grounded"
LIMIT = 10_000_000
"""Bytes of the adapter at most."""
PLACES = ("output_dir", "resume_from_checkpoint")
"""Settings that say where and how a run ran, and nothing of what came out."""
GROUPS = ("answers", "refusal", "citations", "retrieval")
SHOWN = (
    ("F1, answerable questions", "answers", "f1_answerable"),
    ("exact match, answerable questions", "answers", "em_answerable"),
    ("F1, all questions", "answers", "f1"),
    ("abstaining: precision", "refusal", "precision"),
    ("abstaining: recall", "refusal", "recall"),
    ("abstaining: F1", "refusal", "f1"),
    ("citations: precision", "citations", "precision"),
    ("citations: recall", "citations", "recall"),
)


def rounded(value: Any) -> Any:
    """The same to three places."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return round(value, 3) if isinstance(value, float) else value


def scores(file: Path) -> dict[str, Any]:
    """What of an evaluation is kept."""
    report = json.loads(file.read_text("utf-8"))
    kept = {group: {**report[group], "intervals": report["intervals"].get(group, {})} for group in GROUPS}
    return {"n": report["n"], "model": report["model"], "strategy": report["strategy"], **rounded(kept)}


def table(measured: dict[str, Any]) -> str:
    """The scores, in Markdown."""
    lines = ["| | base | adapter |", "| --- | --- | --- |"]
    for text, group, name in SHOWN:
        cells = [cell(measured[which][group], name) for which in ("base", "adapter")]
        lines.append(f"| {text} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(group: dict[str, Any], name: str) -> str:
    """A score with its interval."""
    bounds = group["intervals"].get(name)
    return f"{group[name]:.3f}" + (f" ({bounds[0]:.3f} to {bounds[1]:.3f})" if bounds else "")


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the recipe's run, exported")
    parser.add_argument("scores", type=Path, help="what rag-app eval --json says of it")
    parser.add_argument("base", type=Path, help="the same without it")
    parser.add_argument("--out", type=Path, default=BUNDLED)
    options = parser.parse_args()
    exported = options.run / "export" / "gguf-lora"
    made = manifest.read(exported)
    config = {name: value for name, value in made.config.items() if name not in PLACES}
    config["datasets"] = [{"path": Path(one["path"]).name} for one in config["datasets"]]
    data = {Path(name).name: facts for name, facts in made.data.items()}
    measured = {
        "questions": "SQuAD 2.0: 600 on 6 articles that no step before has read, 400 of them answerable",
        "adapter": scores(options.scores),
        "base": scores(options.base),
    }
    if (exported / manifest.GGUF).stat().st_size > LIMIT:
        parser.error(f"the adapter is larger than {LIMIT:,} bytes: train one of a lower rank")
    with folders.staged(options.out) as part:
        shutil.copyfile(exported / manifest.GGUF, part / manifest.GGUF)
        shutil.copyfile(exported / manifest.HELDOUT, part / manifest.HELDOUT)
        proof = json.loads((exported / manifest.PROOF).read_text("utf-8"))
        proof["source"]["adapter"] = NAME
        (part / manifest.PROOF).write_text(json.dumps(proof, indent=1) + "\n", "utf-8")
        replace(made, name=NAME, config=config, data=data, scores={"test": measured}).write(part)
        card = (HERE / "MODEL_CARD.md").read_text("utf-8")
        (part / "README.md").write_text(card.replace("SCORES\n", table(measured)), "utf-8")


if __name__ == "__main__":
    main()
