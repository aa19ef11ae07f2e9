"""A bot measured on labelled questions: answers, retrieval, refusals, citations, time. docs/evaluation.md defines them.

Every score is a ratio of two sums over the questions, so that all have counts and bootstrap intervals alike.
"""

import hashlib
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from index import Hit, Index, metrics
from index.beir import write_corpus
from index.builder import build
from index.embedding import Progress
from index.errors import LoadError, RagError
from index.paths import home
from rag_app.answer import Answer
from rag_app.citations import MARKER
from rag_app.questions import Evidence, Question, read_documents
from rag_app.scores import Ratio, exact_match, f1, holds, interval, normalised, ratio, refusal

SEARCHED = 20
"""Passages searched for the scores of retrieval, however many the model reads: a document may have several."""
DEPTH = 10
"""Documents of them that are judged."""
RETRIEVAL = ("recall@1", "recall@5", "ndcg@10")
WORST = 10

Outcome = TypeVar("Outcome")
Groups = dict[str, dict[str, Ratio]]


class Asked(Protocol):
    """What is measured: a `rag_app.bot.Bot`, or a script in its place."""

    def ask(self, question: str) -> Answer:
        """The answer to one question."""
        ...

    def index(self) -> Index:
        """The index that answers come from."""
        ...


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one question. A score is None where the question's labels do not allow it."""

    question: Question
    answer: Answer
    """An empty one where the question failed."""
    seconds: float
    error: str = ""
    em: float | None = None
    f1: float | None = None
    retrieval: dict[str, float] | None = None
    cited: list[bool] | None = None
    """For each citation, whether its passage holds a gold answer."""

    def as_dict(self) -> dict[str, Any]:
        """For a line of `--out`."""
        asked, said = self.question, self.answer
        return {
            **{"id": asked.id, "question": asked.question, "gold": list(asked.answers)},
            **{"answerable": asked.answerable, "answer": said.answer, "refused": said.refused},
            **{"em": self.em, "f1": self.f1, "retrieval": self.retrieval, "cited": self.cited},
            **{"confidence": said.confidence, "finish_reason": said.finish_reason, "usage": said.usage},
            **{"steps": len(said.steps), "seconds": round(self.seconds, 3), "error": self.error},
            "citations": [citation.as_dict() for citation in said.citations],
        }


@dataclass
class Evaluation:
    """The results so far."""

    results: list[Result] = field(default_factory=list)
    interrupted: bool = False
    unwritten: str = ""
    """Why `each` could not take the last result, which ended it; empty where it took them all."""

    def report(self, seed: int = 0) -> dict[str, Any]:
        """The JSON form: scores, and in the same structure what they are shares of and their 95% intervals."""
        groups = grouped(self.results)

        def each(measure: Callable[[Ratio], Any]) -> dict[str, Any]:
            return {group: {name: measure(one) for name, one in ratios.items()} for group, ratios in groups.items()}

        return {
            "n": len(self.results),
            **each(lambda one: round(ratio(*one), 6)),
            "counts": each(lambda one: int(sum(one[1]))),
            "intervals": each(lambda one: _rounded(interval(*one, seed=seed))),
            **_costs(self.results),
            "errors": [{"id": one.question.id, "error": one.error} for one in self.results if one.error],
            "worst": [_short(one) for one in _worst(self.results)],
            "interrupted": self.interrupted,
            "unwritten": self.unwritten,
        }


def evaluate(
    bot: Asked,
    questions: Sequence[Question],
    *,
    prefix: str = "",
    each: Callable[[Result], None] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Asks every question; one that fails counts as answered wrongly. Ctrl-C ends with what is done by then.

    Args:
        bot: what answers.
        questions: with their labels.
        prefix: what stands before a document's id in `Hit.source`, where the index is of one corpus file.
        each: given every result as it comes; a RagError that it raises ends with what is done by then.
        progress: told how far it is, as 'answering'.

    Raises:
        KeyboardInterrupt: before the first result.
    """
    done = Evaluation()
    try:
        for number, question in enumerate(questions):
            if progress:
                progress("answering", number, len(questions))
            done.results.append(_result(bot, question, prefix))
            if each:
                each(done.results[-1])
    except KeyboardInterrupt:
        if not done.results:
            raise
        done.interrupted = True
    except RagError as error:
        done.unwritten = str(error)
    return done


def sample(questions: Sequence[Question], limit: int | None, seed: int) -> list[Question]:
    """At most `limit` questions drawn at random, in their order."""
    if limit is None or limit >= len(questions):
        return list(questions)
    return [questions[n] for n in sorted(random.Random(seed).sample(range(len(questions)), limit))]


def index_corpus(corpus: Path, encoder: Any, progress: Progress | None = None) -> tuple[Path, str]:
    """Builds an index of exactly this corpus under the home, or brings the one from the last time up to date.

    Returns:
        The index, and what stands before a document's id in `Hit.source`.

    Raises:
        RagError: the corpus cannot be read; the message names the line.
    """
    path = os.path.abspath(corpus)  # noqa: PTH100  (of a link, its own)
    name = hashlib.sha256(b"documents:" + os.fsencode(path)).hexdigest()[:12]
    folder = Path(os.path.abspath(home() / "eval" / name))  # noqa: PTH100  (as the index names it)
    folder.mkdir(parents=True, exist_ok=True)
    documents = folder / "corpus.jsonl"
    write_corpus(read_documents(corpus), documents)
    failed = build([documents], folder / "index", encoder=encoder, progress=progress).files_failed
    if failed:
        raise LoadError(f"'{corpus}' cannot be read: {failed[0]['error']}")
    return folder / "index", f"{documents}#"


def _result(bot: Asked, question: Question, prefix: str) -> Result:
    began = time.perf_counter()
    answer, error = _tried(lambda: bot.ask(question.question))
    seconds = time.perf_counter() - began
    found = None
    if question.evidence:
        found, missed = _tried(lambda: _retrieval(bot.index(), question, prefix))
        found, error = found or dict.fromkeys(RETRIEVAL, 0.0), error or missed
    if answer is None or error:
        answer = Answer(question.question)
    em, overlap = _right(question, answer, bool(error))
    cited = None if error else _cited(question, answer)
    return Result(question, answer, seconds, error, em, overlap, found, cited)


def _tried(work: Callable[[], Outcome]) -> tuple[Outcome | None, str]:
    """What came out, or why nothing did: whatever fails, the other questions can be answered."""
    try:
        return work(), ""
    except RagError as failure:
        return None, " ".join(str(failure).split())
    except Exception as failure:
        return None, " ".join(f"{type(failure).__name__}: {failure}".split())


def _right(question: Question, answer: Answer, failed: bool) -> tuple[float, float] | tuple[None, None]:
    """EM and F1; to abstain is right where there is no answer, and wrong where there is one."""
    if question.answerable is None or (question.answerable and not question.answers):
        return None, None
    if failed or answer.refused or not question.answerable:
        right = float(not failed and answer.refused and not question.answerable)
        return right, right
    text = MARKER.sub("", answer.answer)
    return exact_match(text, question.answers), f1(text, question.answers)


def _retrieval(index: Index, question: Question, prefix: str) -> dict[str, float]:
    found = dict.fromkeys(_place(question.evidence, hit, prefix) for hit in index.search(question.question, SEARCHED))
    run = {"": {place: -float(rank) for rank, place in enumerate(list(found)[:DEPTH])}}
    wanted = {"": {f"evidence {n}": 1 for n in range(len(question.evidence))}}
    scores = metrics.recall(wanted, run, 1), metrics.recall(wanted, run, 5), metrics.ndcg(wanted, run, DEPTH)
    return dict(zip(RETRIEVAL, scores, strict=True))


def _place(evidence: Sequence[Evidence], hit: Hit, prefix: str) -> str:
    """The piece of evidence that a passage is, else its document, or itself where evidence is smaller than that."""
    for n, one in enumerate(evidence):
        if is_evidence(one, hit, prefix):
            return f"evidence {n}"
    return hit.chunk_id if evidence[0].text else hit.source


def is_evidence(evidence: Evidence, hit: Hit, prefix: str = "") -> bool:
    """Whether a passage is of a document that is wanted, and holds half or more of the words that are."""
    names = [source.removeprefix(prefix) for source in (hit.source, *hit.also)]
    ends = () if prefix else tuple(mark + document for mark in "/#" for document in evidence.documents)
    if not any(name in evidence.documents or name.endswith(ends) for name in names):
        return False
    words = evidence.text.split()
    text = " ".join(hit.text.split())  # line breaks are the file's
    halves = (words[: (len(words) + 1) // 2], words[len(words) // 2 :])  # the chunker may have cut between them
    return any(" ".join(half) in text for half in halves)


def _cited(question: Question, answer: Answer) -> list[bool] | None:
    """For each citation; None where a passage that holds the answer cannot be told, as for yes and no."""
    if not question.answers or {normalised(gold) for gold in question.answers} <= {"yes", "no"}:
        return None
    passages = {hit.rank: hit.text for hit in answer.hits}
    return [holds(passages.get(one.n, one.quote), question.answers) for one in answer.citations]


def grouped(results: Sequence[Result]) -> Groups:
    """Every score as part and whole of each question that has it."""
    labelled = [(one.em, one.f1, one.question.answerable) for one in results if one.em is not None]
    found = [one.retrieval for one in results if one.retrieval is not None]
    told = [one for one in results if one.question.answerable is not None]
    cited = [(one.cited, not one.answer.refused) for one in results if one.cited is not None]
    return {
        "answers": {
            "em": _mean(em for em, _, _ in labelled),
            "f1": _mean(f1 for _, f1, _ in labelled),
            "em_answerable": _mean(em for em, _, answerable in labelled if answerable),
            "f1_answerable": _mean(f1 for _, f1, answerable in labelled if answerable),
        },
        "retrieval": {name: _mean(one[name] for one in found) for name in RETRIEVAL},
        "refusal": refusal([one.answer.refused for one in told], [not one.question.answerable for one in told]),
        "citations": {
            "precision": ([float(sum(good)) for good, _ in cited], [float(len(good)) for good, _ in cited]),
            "recall": ([float(any(good)) for good, _ in cited], [float(answered) for _, answered in cited]),
        },
    }


def _mean(values: Iterator[float | None]) -> Ratio:
    kept = [value for value in values if value is not None]
    return kept, [1.0] * len(kept)


def _costs(results: Sequence[Result]) -> dict[str, Any]:
    import numpy as np

    def mean(values: Sequence[float]) -> float:
        return round(sum(values) / max(len(values), 1), 3)

    kinds = {"prompt": "prompt_tokens", "cached": "cached_tokens", "completion": "completion_tokens"}
    seconds = [one.seconds for one in results]
    p50, p95 = np.percentile(seconds, (50, 95)).tolist() if seconds else (0.0, 0.0)
    return {
        "seconds": round(sum(seconds), 3),
        "time": {"mean": mean(seconds), "p50": round(p50, 3), "p95": round(p95, 3)},
        "tokens": {kind: mean([one.answer.usage.get(key, 0) for one in results]) for kind, key in kinds.items()},
        "steps": mean([len(one.answer.steps) for one in results]),
    }


def _rounded(bounds: tuple[float, float] | None) -> list[float] | None:
    return None if bounds is None else [round(bound, 6) for bound in bounds]


def _worst(results: Sequence[Result]) -> list[Result]:
    """The questions answered worst, in their order among equals."""
    wrong = [one for one in results if one.f1 is not None and one.f1 < 1]
    return sorted(wrong, key=lambda one: one.f1 or 0.0)[:WORST]


def _short(one: Result) -> dict[str, Any]:
    kept = ("id", "question", "gold", "answerable", "answer", "f1", "error")
    return {name: value for name, value in one.as_dict().items() if name in kept}
