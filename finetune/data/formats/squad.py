"""SQuAD's questions: its own JSON (1.1, 2.0), rows with their context, rows that name a paragraph of a corpus."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune.data.formats.fields import Unusable, digest, optional, single, text
from finetune.data.formats.rows import Row, rows
from finetune.example import Example
from rag_app.prompt import NOT_FOUND


def questions(row: Row) -> Iterator[Row]:
    """The questions of SQuAD's own JSON as rows, each with its context and named by its id; another row as it is."""
    if row.problem or "data" not in row.value:
        yield row
        return
    file = row.place.rpartition(":")[0]
    for number, article in enumerate(_objects(row.value, "data"), 1):
        title = article.get("title")
        for paragraph in _objects(article, "paragraphs"):
            for asked in _objects(paragraph, "qas"):
                place = f"{file}:{asked.get('id') or f'article {number}'}"
                yield Row(place, {**asked, "context": paragraph.get("context"), "title": title})
            if not isinstance(paragraph.get("qas"), list):
                yield Row(f"{file}:article {number}", problem="a paragraph without 'qas': write its questions there")


def _objects(holder: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = holder.get(name)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def reader(file: Path) -> Callable[[Mapping[str, Any]], Example]:
    """What makes an example of a row of `file`; paragraphs are looked up in the corpus beside it, read at need."""
    corpus: dict[str, str] = {}

    def read(row: Mapping[str, Any]) -> Example:
        context = optional(row, "context")
        if not context:
            if not corpus:
                corpus.update(_corpus(file))
            context = corpus.get(str(row.get("paragraph_id")), "")
            if not context:
                raise Unusable(f"its paragraph is not in {_beside(file).name}, by its 'paragraph_id': add it there")
        return _example(row, context)

    return read


def _example(row: Mapping[str, Any], context: str) -> Example:
    question, document = text(row, "question"), optional(row, "title") or digest(context)
    golds = _golds(row)
    impossible = row.get("is_impossible") is True or row.get("answerable") is False
    silent = "answerable" not in row and "is_impossible" not in row and isinstance(row.get("answers"), list | dict)
    if impossible or (silent and not golds):
        return single(row, "question_answering", question, NOT_FOUND, context, document, answerable=False)
    if not golds:
        raise Unusable("no words in 'answers': write one, or answerable: false")
    answer = _target(golds, context)
    return single(row, "question_answering", question, answer, context, document, references=golds, golden=0)


def _golds(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Texts, SQuAD's objects with a `text`, or Hugging Face's lists side by side; each text once."""
    given = row.get("answers")
    if isinstance(given, dict):
        given = given.get("text")
    listed = [] if given is None else given
    found = (
        [one.get("text") if isinstance(one, dict) else one for one in listed] if isinstance(listed, list) else [None]
    )
    if not all(isinstance(one, str) for one in found):
        raise Unusable("'answers' is no list of texts, or of objects with a 'text': write one")
    return tuple(dict.fromkeys(str(one).strip() for one in found if str(one).strip()))


def _target(golds: tuple[str, ...], context: str) -> str:
    """The first answer that stands in the context; without its full stop, where that is right as well."""
    plain = " ".join(context.split()).lower()
    for gold in golds:
        if " ".join(gold.split()).lower() in plain:
            bare = gold.removesuffix(".")
            return bare if bare in golds else gold
    raise Unusable("no answer stands in the context: correct one of them")


def _beside(file: Path) -> Path:
    name = file.name.replace("questions", "corpus")
    return file.with_name(name if name != file.name else "corpus.jsonl")


def _corpus(file: Path) -> dict[str, str]:
    beside = _beside(file)
    if not beside.is_file():
        raise Unusable(f"no 'context', and no file '{beside}' with the paragraphs: put it there")
    return {str(row.value.get("_id")): optional(row.value, "text") for row in rows(beside) if not row.problem}
