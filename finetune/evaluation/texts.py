"""The text that models are compared on: examples of the user's, what a run has held out, or demo documents."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.evaluation import adapters
from finetune.evaluation.adapters import Adapter
from finetune.evaluation.candidates import Candidate
from finetune.example import Example
from index.errors import RagError

DEMO = Path(__file__).parents[2] / "examples" / "peft_docs" / "docs"
PIECE = 3000
"""Characters of a document that are taken together: more than 512 tokens of most languages."""
Piece = str | Example


@dataclass(frozen=True)
class Texts:
    """Where text comes from, and the text itself: documents' pieces, or examples, whose prompts and answers count."""

    name: str
    pieces: Sequence[Piece]

    def drawn(self, count: int) -> list[Piece]:
        """At most so many pieces from all over, the same each time."""
        return random.Random(0).sample(self.pieces, min(count, len(self.pieces)))


def default(candidates: Sequence[Candidate]) -> Texts:
    """The validation part of the first run among the candidates, else the demo documents, else bundled examples.

    What was exported into a run's folder counts as the run.
    """
    for one in candidates:
        found = _held_out(one)
        if found:
            return Texts(f"the validation part of '{one.name}'", found)
    documents = list(_demo())
    if documents:
        return Texts("the demo documents (examples/peft_docs)", documents)
    return Texts("the bundled examples of rag_app", _bundled())


def _held_out(candidate: Candidate) -> list[Example]:
    """What training validates on; nothing where that cannot be read any more."""
    from finetune.config import checked
    from finetune.data.records import load_examples
    from finetune.data.splits import split

    try:
        run = _run(candidate)
        if not run:
            return []
        config = checked(run.run.get("config") or {}, candidate.name)
        examples, _ = load_examples(config.test_datasets or config.datasets, config)
    except (RagError, OSError):
        return []
    if config.test_datasets:
        return examples
    if not any(one.part == "validation" for one in examples) and config.val_set_size:
        examples = split(examples, config.val_set_size, 0.0, config.seed)
    return [one for one in examples if one.part == "validation"]


def _run(candidate: Candidate) -> Adapter | None:
    """What the training of a candidate has left, beside the adapter or the exports."""
    if candidate.adapter:
        return candidate.adapter
    source = candidate.source
    file = candidate.lora.parent.resolve() if candidate.lora else Path(source.where, source.gguf or "")
    exported = file.parent.name == "export"
    return adapters.find(str(file.parent.parent if exported else file))


def _demo() -> Iterator[str]:
    for file in sorted(DEMO.rglob("*.md")):
        text = file.read_text("utf-8", errors="replace")
        yield from (text[at : at + PIECE] for at in range(0, len(text), PIECE))


def _bundled() -> list[Example]:
    from rag_app.examples import load_examples

    rows = enumerate(load_examples())
    return [Example(f"bundled-{n}", "question_answering", one.question, one.answer, one.passages) for n, one in rows]
