"""Questions for documents that nobody has asked about yet, kept only where they lead back to where they come from.

Patterns (finetune.data.writing) or a model write them from a passage. Retrieval must find the passage with the
question; and the model, asked with the passage, must give the answer that it wrote. Knows no index: a search is a
function.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from finetune.data.answers import answer_in, answered, bare
from finetune.data.asked import Asked
from finetune.data.formats.fields import digest
from finetune.data.writing import KINDS, Source, Written, fluent, written
from index import Hit
from index.embedding import Progress
from rag_app.citations import MARKER
from rag_app.grammar import writing_grammar
from rag_app.prompt import Message, question_prompt, writing_prompt
from rag_app.questions import Evidence
from rag_app.reasoning import Reasoning
from rag_app.scores import f1, holds, normalised

if TYPE_CHECKING:
    from rag_app.generator import Generator

AGREEMENT = 0.5
"""F1 from which two answers agree; a longer one that holds the shorter agrees, too."""
MOST_WRITTEN = 128
"""Tokens of a question with its answer, and of the answer given to it."""
FEW = 15
"""Words that a model's answer has, at most."""
PER_PASSAGE = 3
"""Questions of one kind that patterns write of one passage, at most."""
FORM = re.compile(r"Question:\s*(?P<question>[^\n]+\?)\s*\n+\s*Answer:\s*(?P<answer>[^\n]+)", re.IGNORECASE)


@dataclass
class Made:
    """Questions that came through, and why others did not."""

    kept: list[Written] = field(default_factory=list)
    fell: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        by = Counter(one.by for one in self.kept)
        return {"kept": len(self.kept), "by": dict(by.most_common()), "fell": dict(self.fell.most_common())}

    def lines(self) -> list[str]:
        """For people."""
        tried = len(self.kept) + self.fell.total()
        by = ", ".join(f"{count:,} {name}" for name, count in Counter(one.by for one in self.kept).most_common())
        lines = [f"{len(self.kept):,} of {tried:,} questions that were written came through{': ' * bool(by)}{by}"]
        return lines + [f"  fell: {count:,} ({reason})" for reason, count in self.fell.most_common()]


def make(
    sources: Sequence[Source],
    wanted: int,
    search: Callable[[str], Sequence[Hit]],
    k: int,
    *,
    model: "Generator | None" = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Made:
    """Questions of passages in random order, until there are enough of them or every passage had its turn.

    Args:
        sources: passages, all of them.
        wanted: how many to keep.
        search: gives a question's hits, best first.
        k: the passage must be among as many of them.
        model: what writes and answers; without one patterns write, and nothing is answered.
        seed: of the order.
        progress: told how many are kept, as 'writing'.

    Raises:
        RagError: the model cannot be had, or fails.
    """
    made, earlier = Made(), dict[str, Written]()
    order = list({source.text: source for source in sources}.values())
    random.Random(seed).shuffle(order)
    for one in _by_model(order, model, made.fell) if model else _by_patterns(order):
        if progress:
            progress("writing", len(made.kept), wanted)
        if reason := _twice(one, earlier, made) or _astray(one, search, k) or _contested(one, model):
            made.fell[reason] += 1
            continue
        made.kept.append(one)
        if len(made.kept) == wanted:
            break
    return made


def asked_of(made: Made, prefix: str = "") -> list[Asked]:
    """What is kept, as questions with their evidence.

    Args:
        made: what came through.
        prefix: what stands before a document's id in `Source.document`, where the index is of one corpus file.
    """
    result = []
    for one in made.kept:
        span = answer_in(one.source.text, [one.answer]) or (0, 0)
        evidence = Evidence(
            (one.source.document.removeprefix(prefix),), answered("sentence", one.source.text, span, 1) or ""
        )
        title = [one.source.heading.partition(" > ")[0]] if prefix and one.source.heading else []
        name = f"written/{digest(one.question, one.source.document)}"
        documents = (*title, *evidence.documents)
        result.append(Asked(name, one.question, (one.answer,), (evidence,), documents, f"written by {one.by}"))
    return result


def _by_patterns(sources: Sequence[Source]) -> Iterator[Written]:
    for kinds in KINDS:
        for source in sources:
            for kind in kinds:
                yield from islice(written(source, kind), PER_PASSAGE)


def _by_model(sources: Sequence[Source], model: "Generator", fell: Counter[str]) -> Iterator[Written]:
    name = model.check()
    for source in sources:
        form = FORM.search(_reply(model, writing_prompt(source.text), source.text))
        question = " ".join(form["question"].split()) if form else ""
        answer = bare(form["answer"].strip().strip("\"“”'`*")) if form else ""
        if not answer:
            fell["no question with an answer was written"] += 1
        elif not fluent(question, answer, "model"):
            fell["the question means nothing without the passage, or holds the answer"] += 1
        elif len(answer.split()) > FEW:
            fell["the answer is long"] += 1
        elif not answer_in(source.text, [answer]):
            fell["the answer stands not in the passage"] += 1
        else:
            yield Written(question, answer, "model", name, source)


def _reply(model: "Generator", messages: Sequence[Message], passage: str) -> str:
    """What a model writes, in the form of a question where `passage` is given."""
    wanted: dict[str, Any] = {"max_tokens": MOST_WRITTEN}
    if passage and "grammar" in model.abilities:
        wanted["grammar"] = writing_grammar()
    if passage and "quotes" in model.abilities:
        wanted["quotes"] = [passage]
    reasoning = Reasoning()
    chunks = model.stream([(message.role, message.content) for message in messages], **wanted)
    return "".join(reasoning.feed(chunk.text)[1] for chunk in chunks) + reasoning.finish()


def _twice(one: Written, earlier: dict[str, Written], made: Made) -> str:
    """Whether the question was written before; with another answer it means nothing by itself, and both fall."""
    other = earlier.setdefault(normalised(one.question), one)
    if other is one:
        return ""
    if f1(one.answer, [other.answer]) >= AGREEMENT:
        return "the same question was written before"
    reason = "the same question has another answer elsewhere"
    if other in made.kept:
        made.kept.remove(other)
        made.fell[reason] += 1
    return reason


def _astray(one: Written, search: Callable[[str], Sequence[Hit]], k: int) -> str:
    found = any(one.source.chunk_id == hit.chunk_id or one.source.text == hit.text for hit in search(one.question)[:k])
    return "" if found else "retrieval does not find the passage with it"


def _contested(one: Written, model: "Generator | None") -> str:
    if not model:
        return ""
    reply = MARKER.sub("", _reply(model, question_prompt(one.question, [one.source.text]), ""))
    agree = f1(reply, [one.answer]) >= AGREEMENT or holds(reply, [one.answer])
    return "" if agree else "answering it gives another answer"
