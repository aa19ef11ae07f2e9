"""How well the best passage's cosine tells questions about the documents from questions about something else.

Run: .venv/bin/python bench/refusal.py TRAIN_CORPUS.jsonl TRAIN_QUESTIONS.jsonl   (SQuAD rows, see the files' READMEs)

Half of the articles are indexed; questions on them are 'about', questions on the other half are 'foreign'. Prints,
for a range of floors, the share of each kind whose best passage lies below the floor. `rag_app.bot.MIN_SCORE` is the
highest of them that turns away less than 1% of the questions about the documents.
"""

import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from index import Index, build
from index.encoder import SentenceEncoder


def main(corpus: str, questions: str) -> None:
    """Builds, asks, prints the table."""
    articles = defaultdict(list)
    for line in Path(corpus).read_text("utf-8").splitlines():
        row = json.loads(line)
        articles[row["title"]].append(row["text"])
    indexed = set(sorted(articles)[::2])
    encoder = SentenceEncoder()
    with tempfile.TemporaryDirectory() as folder:
        for title in indexed:
            name = "".join(c if c.isalnum() else "_" for c in title)
            text = f"# {title.replace('_', ' ')}\n\n" + "\n\n".join(articles[title])
            (Path(folder) / f"{name}.md").write_text(text, "utf-8")
        build([folder], Path(folder) / ".index", encoder=encoder)
        index = Index.open(Path(folder) / ".index", encoder)
        best: dict[str, list[float]] = {"about": [], "foreign": []}
        for line in Path(questions).read_text("utf-8").splitlines():
            row = json.loads(line)
            if row["answerable"]:
                kind = "about" if row["title"] in indexed else "foreign"
                best[kind].append(index.search(row["question"], 1, "dense")[0].score)
    print(f"{len(best['about'])} questions about the documents, {len(best['foreign'])} foreign ones")
    print("floor  about below  foreign below")
    for floor in np.arange(0.15, 0.61, 0.05):
        shares = [float(np.mean(np.array(best[kind]) < floor)) for kind in ("about", "foreign")]
        print(f"{floor:5.2f}  {shares[0]:11.3f}  {shares[1]:13.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
