"""Labelled questions and corpora from files, in the forms of public data sets. Knows no index and no model.

A question a line (JSON Lines):
    SQuAD           question, answers, answerable, paragraph_id
    HotpotQA        question, answer, gold_titles or supporting_facts
    MuSiQue         question, answer, answer_aliases, answerable, paragraphs with is_supporting
    own documents   question, answer, answerable, source_file, supporting_sentence, also_in

Only `question` has to be there: a score that needs what is missing leaves the question out.

A document a line: `_id` or `id`, `title`, and `text` or `sentences`; or `paragraphs`, as in MuSiQue's questions.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from index.beir import DatasetInvalid, invalid, read_rows
from rag_app.halves import repaired


@dataclass(frozen=True, slots=True)
class Evidence:
    """One place that an answer rests on."""

    documents: tuple[str, ...]
    """Ids of records, or ends of paths, any of which will do."""
    text: str = ""
    """What stands there; empty where the whole document is the place."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question, and what is known of its answer."""

    id: str
    question: str
    answers: tuple[str, ...] = ()
    """Any of them is right; none where the question cannot be answered, or its answer is not given."""
    answerable: bool | None = None
    """Whether the documents hold the answer; None where the file does not say."""
    evidence: tuple[Evidence, ...] = ()
    """All the places that the answer rests on; empty where they are not given."""


def read_questions(path: str | Path) -> list[Question]:
    """The questions of a file, in its order.

    Raises:
        DatasetInvalid: the file cannot be read or is empty, or a line is no question; the message names the line.
    """
    path = Path(path)
    questions = [question_of(path, number, row) for number, row in _rows(path)]
    if not questions:
        raise DatasetInvalid(f"'{path}' holds no question: write one JSON object a line, with a 'question'")
    return questions


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """As `read_rows`, with texts that a tokenizer takes."""
    for number, row in read_rows(path):
        try:
            text = json.dumps(row, ensure_ascii=False)
            yield number, row if (whole := repaired(text)) == text else json.loads(whole)
        except RecursionError:
            raise invalid(path, number, "nested too deeply: write texts and lists of texts") from None


def question_of(path: Path, number: int, row: dict[str, Any]) -> Question:
    """The question of one line.

    Raises:
        DatasetInvalid: it is none; the message names file and line.
    """
    text = row.get("question")
    if not isinstance(text, str) or not text.strip():
        raise invalid(path, number, "no words in 'question': write it there")
    answerable = row.get("answerable")
    if answerable is not None and not isinstance(answerable, bool):
        raise invalid(path, number, f"'answerable' is {answerable!r}: write true or false, or leave it out")
    answers = _answers(path, number, row)
    if answerable is None and ("answers" in row or "answer" in row):
        answerable = bool(answers)
    name = row.get("id", row.get("_id", number))
    if not answerable:  # sets with twins of answerable questions give the twin's answer and evidence
        return Question(str(name), text.strip(), (), answerable)
    return Question(str(name), text.strip(), answers, answerable, tuple(_evidence(path, number, row)))


def _answers(path: Path, number: int, row: dict[str, Any]) -> tuple[str, ...]:
    one, several = row.get("answer"), row.get("answers")
    found = [*([] if one is None else [one]), *_texts(path, number, row, "answer_aliases")]
    found += [] if several is None else _texts(path, number, row, "answers")
    if not all(isinstance(answer, str) for answer in found):
        raise invalid(path, number, f"'answer' is {one!r}: write a text, or null where there is none")
    return tuple(dict.fromkeys(answer for answer in found if answer.strip()))


def _texts(path: Path, number: int, row: dict[str, Any], key: str) -> list[str]:
    value = row.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise invalid(path, number, f"'{key}' is no list of texts: write one")
    return value


def _evidence(path: Path, number: int, row: dict[str, Any]) -> Iterator[Evidence]:
    titles = _texts(path, number, row, "gold_titles") or _facts(path, number, row)
    if isinstance(row.get("paragraph_id"), str | int):
        yield Evidence((str(row["paragraph_id"]),))
    elif titles:
        yield from (Evidence((title,)) for title in dict.fromkeys(titles))
    elif "paragraphs" in row:
        paragraphs = _paragraphs(path, number, row)
        yield from (Evidence((document["_id"],)) for document, supports in paragraphs if supports)
    elif isinstance(row.get("source_file"), str):
        sentence = row.get("supporting_sentence")
        files = (row["source_file"], *_texts(path, number, row, "also_in"))
        yield Evidence(files, sentence if isinstance(sentence, str) else "")


def _facts(path: Path, number: int, row: dict[str, Any]) -> list[str]:
    """Titles of `supporting_facts`, pairs of title and number of a sentence."""
    facts = row.get("supporting_facts") or []
    if not isinstance(facts, list) or not all(isinstance(f, list) and f and isinstance(f[0], str) for f in facts):
        raise invalid(path, number, "'supporting_facts' is no list of [title, sentence]: write one")
    return [fact[0] for fact in facts]


def _paragraphs(path: Path, number: int, row: dict[str, Any]) -> Iterator[tuple[dict[str, Any], bool]]:
    """MuSiQue's paragraphs as documents, and whether the answer rests on them."""
    paragraphs = row["paragraphs"]
    if not isinstance(paragraphs, list) or not all(isinstance(one, dict) for one in paragraphs):
        raise invalid(path, number, "'paragraphs' is no list of objects: write one")
    for one in paragraphs:
        title, text = one.get("title") or "", one.get("paragraph_text")
        if not isinstance(title, str) or not isinstance(text, str):
            raise invalid(path, number, "a paragraph has no text in 'paragraph_text': write it there")
        # Several of one title occur, and one paragraph under several questions.
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        yield {"_id": f"{title}~{digest}", "title": title, "text": text}, one.get("is_supporting") is True


def has_paragraphs(path: str | Path) -> bool:
    """Whether a file of questions brings its documents along."""
    return any("paragraphs" in row for _, row in read_rows(Path(path)))


def read_documents(path: str | Path) -> Iterator[dict[str, Any]]:
    """The documents of a corpus as `{"_id", "title", "text"}`, in the file's order, each once.

    Raises:
        DatasetInvalid: the file cannot be read or is empty, or a line is no document or has the id of an earlier one.
    """
    path, seen = Path(path), set[str]()
    for number, row in _rows(path):
        for document in _documents(path, number, row):
            if document["_id"] not in seen:
                seen.add(document["_id"])
                yield document
            elif "paragraphs" not in row:
                raise invalid(path, number, f"the document '{document['_id']}' is there twice: remove one of them")
    if not seen:
        raise DatasetInvalid(f"'{path}' holds no document: write one JSON object a line, with '_id' and 'text'")


def _documents(path: Path, number: int, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "paragraphs" in row:
        yield from (document for document, _ in _paragraphs(path, number, row))
        return
    name, title, text = row.get("_id", row.get("id")), row.get("title") or "", row.get("text")
    if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
        raise invalid(path, number, "no '_id': give each document one")
    if text is None and "sentences" in row:
        text = " ".join(sentence.strip() for sentence in _texts(path, number, row, "sentences"))
    if not isinstance(title, str) or not isinstance(text, str):
        raise invalid(path, number, f"the document '{name}' has no 'text' or 'sentences': write one of them")
    yield {"_id": str(name), "title": title, "text": text}
