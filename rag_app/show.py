"""An answer made ready for the page: safe Markdown, and passages with their quotes marked. Knows no page library."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from index.paths import shown

CODE = re.compile(r"(```.*?(?:```|$)|`[^`\n]+`)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Source:
    """A passage under an answer."""

    label: str
    """Number, file, page or heading, on one line."""
    place: str
    """Where it stands, for finding it in the file itself."""
    cited: bool
    pieces: tuple[tuple[str, bool], ...]
    """The passage in order, each piece with whether it is quoted by the answer."""


def as_markdown(text: str) -> str:
    """Text that a model or a document wrote, as Markdown that can do no harm.

    An image would be fetched from wherever its address points, with whatever the address carries: it is shown as
    text. A dollar sign is money, not mathematics, and a colon pair is no icon.
    """
    parts = CODE.split(text)
    for place in range(0, len(parts), 2):  # odd places are code, which Markdown shows as it is
        part = parts[place].replace("$", r"\$")
        parts[place] = re.sub(r":(?=(?:material/)?[\w+-]+[:\[])", r"\:", part)
    # In code too: what looks like code here may be none to Markdown (a fence that a list ends, an escaped backtick),
    # and a backslash too many does less harm than an image fetched.
    return "".join(parts).replace("![", r"!\[")


def sources(details: dict[str, Any]) -> list[Source]:
    """The passages of a kept answer, the quotes in them marked; those that the model did not read are left out."""
    try:
        hits = details.get("hits") or []
        hits = hits[: len(hits) - details.get("dropped", 0)]
        return [_source(hit, [c for c in details.get("citations", ()) if c["n"] == hit["rank"]]) for hit in hits]
    except (KeyError, TypeError, AttributeError):
        return []  # a damaged row: the answer is shown without them


def steps(details: dict[str, Any]) -> list[str]:
    """The steps of a kept answer, as plain text."""
    try:
        return [_step(step) for step in details.get("steps") or []]
    except (KeyError, TypeError, AttributeError):
        return []


def _step(step: dict[str, Any]) -> str:
    lines = [step["thought"]] if step["thought"] else []
    lines += [f"{step['action']}: {step['input']}"] if step["action"] else []
    return "\n".join([*lines, *([f"→ {step['observation']}"] if step["observation"] else [])])


def _source(hit: dict[str, Any], citations: Sequence[dict[str, Any]]) -> Source:
    page = f" · page {hit['page']}" if hit["page"] else ""
    heading = f" · {hit['heading']}" if hit["heading"] else ""
    place = f"{shown(hit['source'])}{page}, characters {hit['start']:,} to {hit['end']:,}"
    name = hit["source"].rsplit("/", 1)[-1]
    spans = sorted((c["start"] - hit["start"], c["end"] - hit["start"]) for c in citations)
    return Source(f"[{hit['rank']}] {name}{page}{heading}", place, bool(spans), tuple(_pieces(hit["text"], spans)))


def _pieces(text: str, spans: list[tuple[int, int]]) -> list[tuple[str, bool]]:
    pieces, position = list[tuple[str, bool]](), 0
    for start, end in spans:
        if end <= position:
            continue
        pieces += [(text[position : max(start, position)], False), (text[max(start, position) : end], True)]
        position = end
    return [piece for piece in [*pieces, (text[position:], False)] if piece[0]]
