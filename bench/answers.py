"""How well the bundled model answers by each strategy: SQuAD's training part, the same drawn questions for all.

Run: .venv/bin/python -m bench.answers [--data ../shared/data] [--limit 100] [--strategies zero-shot,few-shot,cot]

Scores are those of `rag-app eval` (docs/evaluation.md) with 95% intervals; differences within these mean nothing.
A strategy that is not asked for keeps its earlier figures in the results, if those are of the same questions.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, get_args

from bench.machine import machine
from index.encoder import SentenceEncoder
from rag_app import settings
from rag_app.bot import Bot
from rag_app.evaluate import evaluate, index_corpus, sample
from rag_app.prompt import PROMPT_VERSION
from rag_app.questions import read_questions

RESULTS = Path(__file__).parent / "results" / "answers.json"
KEPT = ("answers", "retrieval", "refusal", "citations", "counts", "intervals", "time", "tokens", "steps", "errors")


def show(stage: str, done: int, total: int) -> None:
    """A count in one line."""
    print(f"\r{stage} {done}/{total} ", end="", file=sys.stderr, flush=True)


def earlier(same: dict[str, Any]) -> dict[str, Any]:
    """Strategies measured before on the same questions by the same model and prompts."""
    if not RESULTS.exists():
        return {}
    stored = json.loads(RESULTS.read_text("utf-8"))
    if any(stored.get(name) != value for name, value in same.items()):
        return {}
    return dict(stored["strategies"])


def main() -> None:
    """Prints the figures and writes them to bench/results, after every strategy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--strategies", default=",".join(get_args(settings.Strategy)))
    options = parser.parse_args()
    squad, encoder, chosen = options.data / "squad", SentenceEncoder(), settings.Settings()
    questions = sample(read_questions(squad / "train_questions.jsonl"), options.limit, seed=0)
    directory, prefix = index_corpus(squad / "train_corpus.jsonl", encoder, show)
    generator = settings.make_generator(chosen)
    same = {"questions": len(questions), "model": generator.check(), "prompt_version": PROMPT_VERSION}
    measured = earlier(same)
    try:
        for strategy in options.strategies.split(","):
            bot = Bot(generator, directory, encoder, settings.Options(strategy=strategy))
            bot.load()
            report = evaluate(bot, questions, prefix=prefix, progress=show).report()
            measured[strategy] = {name: report[name] for name in KEPT}
            text = json.dumps({"machine": machine(), **same, "strategies": measured}, indent=1)
            RESULTS.write_text(text + "\n", "utf-8")
            scores = {**report["answers"], "refusal f1": report["refusal"]["f1"], "seconds": report["time"]["mean"]}
            print(f"\r{strategy:10}", *(f"{name} {value:.3f}" for name, value in scores.items()), flush=True)
    finally:
        generator.close()


if __name__ == "__main__":
    main()
