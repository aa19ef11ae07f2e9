"""Chunker: what holds of every document, real or nasty, and where the cuts and the overlaps fall."""

import random
import re
import time
from bisect import bisect_left
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import pytest

from index.chunker import HEADING_CHARS, WINDOW, Chunk, ChunkSettings, chunk, ending
from index.document import Block, Document
from index.loaders import load as load_all
from index.loaders import paragraphs
from index.placing import place
from tests.conftest import ROOT, WordEncoder

DEFAULT = ChunkSettings()
SMALL = ChunkSettings(max_tokens=12, min_tokens=4, overlap_tokens=5, max_chars=60)
tokenize = WordEncoder().tokenize


def load(path: Path, data: bytes) -> Document:
    [document] = load_all(path, data)
    return document


def markdown(text: str) -> Document:
    return load(Path("a.md"), text.encode())


def pages(*texts: str) -> Document:
    """A document of pages, as the PDF loader makes it."""
    blocks, start = list[Block](), 0
    for number, text in enumerate(texts, 1):
        blocks += [Block(b.start + start, b.end + start, page=number) for b in paragraphs(text)]
        start += len(text) + 2
    return Document("\f\n".join(texts), tuple(blocks))


def cut(document: Document, settings: ChunkSettings = SMALL) -> list[str]:
    return [c.text for c in chunk(document, tokenize, settings)]


def path_above(document: Document, position: int) -> list[str]:
    """The titles of the headings above a position, told anew: every heading that no later one has closed."""
    path: dict[int, str] = {}
    for block in document.blocks:
        if block.kind == "heading" and block.start <= position:
            path = {level: title for level, title in path.items() if level < block.level} | {block.level: block.title}
    return [title for _, title in sorted(path.items()) if title]


def check_heading(document: Document, c: Chunk) -> None:
    """Asserts that a chunk's heading is the longest path that all its text stands under."""
    inside = [block for block in document.blocks if block.start < c.end and c.start < block.end]
    paths = [path_above(document, b.start) for b in inside if b.kind != "heading"] or [path_above(document, c.end - 1)]
    shared = [titles[0] for titles in takewhile(lambda titles: len(set(titles)) == 1, zip(*paths, strict=False))]
    if any(block.kind == "heading" and block.end - block.start > 20 for block in inside):  # perhaps it is cut itself
        assert c.heading in [ending(" > ".join(above[:length])) for above in paths for length in range(len(above) + 1)]
    else:
        assert c.heading == ending(" > ".join(shared))


def check(document: Document, settings: ChunkSettings) -> list[Chunk]:
    """Asserts what must hold of the chunks of any document."""
    chunks = chunk(document, tokenize, settings)
    starts = [start for start, _ in tokenize(document.text)]
    for c in chunks:
        assert c.text == document.text[c.start : c.end] and c.text.strip()
        assert len(c.text) <= settings.max_chars
        assert bisect_left(starts, c.end) - bisect_left(starts, c.start) <= settings.max_tokens
        check_heading(document, c)
        assert {b.page for b in document.blocks if b.start < c.end and c.start < b.end} == {c.page}
    for left, right in pairwise(chunks):
        assert left.start < right.start and left.end < right.end, "a chunk lies within another"
        if right.start < left.end:
            assert left.page == right.page and path_above(document, right.start) == path_above(document, left.end - 1)
            overlap = bisect_left(starts, left.end) - bisect_left(starts, right.start)
            assert overlap <= settings.overlap_tokens
            assert not any(b.kind == "heading" and right.start < b.start < left.end for b in document.blocks)
    for left_block, right_block in pairwise(document.blocks):
        if re.search(r"\w", document.text[left_block.end : right_block.start]):
            assert not any(c.start < right_block.start and left_block.end < c.end for c in chunks), "holds hidden text"
    covered = bytearray(len(document.text))
    for c in chunks:
        covered[c.start : c.end] = b"\1" * (c.end - c.start)
    for block in document.blocks:
        for position in range(block.start, block.end):
            assert covered[position] or document.text[position].isspace(), document.text[position : position + 40]
    return chunks


def nasty(seed: int) -> str:
    """Markdown of headings, lists, code, tables, long words, odd blanks and odd scripts, in any order."""
    rng = random.Random(seed)
    words = [
        "a",
        "The",
        "rainforest",
        "x" * 90,
        "0.5",
        "e.g.",
        "don't",
        "🦓",
        "日本語。",
        "naïve",
        "\u00a0",
        "*",
        "`q`",
        "—",
        "I.",
    ]

    def line(longest: int = 40) -> str:
        return " ".join(rng.choice(words) for _ in range(rng.randrange(1, longest)))

    def block() -> str:
        match rng.randrange(9):
            case 0:
                return "#" * rng.randrange(1, 7) + " " + rng.choice([line(6), ""])
            case 1:
                return "\n".join(f"{rng.choice('-*+')} {line(15)}" for _ in range(rng.randrange(1, 12)))
            case 2:
                return (
                    "```\n" + "\n".join(" " * rng.randrange(9) + line(12) for _ in range(rng.randrange(20))) + "\n```"
                )
            case 3:
                return "| a | b |\n|---|---|\n" + "\n".join(f"| {line(4)} | {line(4)} |" for _ in range(9))
            case 4:
                return rng.choice("xyz.") * rng.randrange(1, 400)
            case 5:
                return line(8) + "\n" + rng.choice("-=") * 3
            case 6:
                return "<!-- " + line(9) + " -->"
            case _:
                return "\n".join(rng.choice([". ", "! ", "。", "\t"]).join(line(9) for _ in range(9)) for _ in range(3))

    return rng.choice(["\n\n", "\n", "\n \n\n"]).join(block() for _ in range(rng.randrange(1, 25)))


@pytest.mark.parametrize("settings", [DEFAULT, SMALL], ids=["default", "small"])
def test_invariants_on_the_demo_documents(settings: ChunkSettings) -> None:
    paths = sorted((ROOT / "examples" / "peft_docs").rglob("*.md"))
    assert len(paths) == 80
    for path in paths:
        assert check(load(path, path.read_bytes()), settings), path


@pytest.mark.parametrize("seed", range(60))
def test_invariants_on_nasty_documents(seed: int) -> None:
    document = markdown("word\n\n" + nasty(seed))
    rng = random.Random(seed)
    most = rng.randrange(3, 150)
    odd = ChunkSettings(most, rng.randrange(most), rng.randrange(most), max_chars=rng.randrange(20, 1500))
    for settings in (DEFAULT, SMALL, odd):
        assert check(document, settings)


@pytest.mark.parametrize("seed", range(20))
def test_invariants_on_nasty_pages(seed: int) -> None:
    document = pages(*(nasty(100 * seed + page) for page in range(4)))
    for settings in (DEFAULT, SMALL):
        assert check(document, settings)


@pytest.mark.parametrize(
    ("text", "chunks"),
    [
        ("x" * 50_000, 34),
        ("-" * 50_000, 391),
        ("The quick brown fox jumps. " * 18_520, None),
        ("word " * 100_000, 782),
        ("日本語の文章。" * 5_000, None),
        ("a." + '"' * 50_000 + " B", None),
        ("a.\n " * 50_000 + "b", None),
    ],
    ids=["one word", "one line of hyphens", "500 kB line", "no sentence", "no blanks", "quotes", "short lines"],
)
def test_one_huge_block(text: str, chunks: int | None) -> None:
    found = check(Document(text, (Block(0, len(text)),)), DEFAULT)
    assert len(found) == chunks or chunks is None


def test_blank_lines_in_a_list_cost_no_more_than_others() -> None:
    document = markdown("- a\n" + "\n" * 20_000 + "  " + "word " * 60)
    began = time.process_time()
    assert len(chunk(document, tokenize, DEFAULT)) == 2
    assert time.process_time() - began < 2  # 0.02 s; a search that is quadratic in the blanks takes 8 s


# --- where it cuts


def test_a_short_document_is_one_chunk() -> None:
    text = "# Title\n\nOne paragraph.\n\nAnother."
    assert cut(markdown(text + "\n"), DEFAULT) == [text]


def test_no_blocks_no_chunks() -> None:
    assert cut(Document("<!-- a comment -->", ())) == []


def test_a_section_that_is_long_enough_starts_a_chunk() -> None:
    first = "# One\n\nenough words here to stand alone"
    assert cut(markdown(f"{first}\n\n# Two\n\nmore words")) == [first, "# Two\n\nmore words"]


def test_a_shorter_section_is_joined_with_the_one_that_follows() -> None:
    assert cut(markdown("# One\n\n# Two\n\nmore words")) == ["# One\n\n# Two\n\nmore words"]


def test_headings_are_a_path() -> None:
    body = "enough words here to stand alone"
    source = f"{body}\n\n# A\n\n{body}\n\n## B\n\n{body}\n\n#### C\n\n{body}\n\n## `d_e`\n\n{body}\n\n# F\n\n{body}"
    found = chunk(markdown(source), tokenize, SMALL)
    assert [c.heading for c in found] == ["", "A", "A > B", "A > B > C", "A > d_e", "F"]


def test_long_text_is_cut_between_sentences_and_short_ones_are_repeated() -> None:
    text = "One two three four. Five six. Seven eight nine ten. Eleven twelve. And the last one is long."
    settings = ChunkSettings(max_tokens=9, min_tokens=2, overlap_tokens=4)
    assert cut(Document(text, (Block(0, len(text)),)), settings) == [
        "One two three four. Five six.",
        "Five six. Seven eight nine ten.",
        "Eleven twelve.",
        "And the last one is long.",
    ]


def test_overlap_stays_within_a_section() -> None:
    source = "# One\n\nFirst words here and there.\n\nLast words.\n\n# Two\n\nOther words here and there."
    assert cut(markdown(source)) == [
        "# One\n\nFirst words here and there.\n\nLast words.",
        "# Two\n\nOther words here and there.",
    ]


def test_a_word_that_is_longer_than_a_chunk_is_cut() -> None:
    text = "y" * 130
    assert cut(Document(text, (Block(0, len(text)),))) == ["y" * 60, "y" * 60, "y" * 10]


def test_code_is_cut_between_lines_and_keeps_its_indentation() -> None:
    lines = [f"    step_{number} = run(number)" for number in range(8)]
    found = cut(markdown("```\n" + "\n".join(lines) + "\n```\n"))
    assert all(set(text.split("\n")) <= {"```", *lines} for text in found)
    assert {line for text in found for line in text.split("\n")} == {"```", *lines}


def test_items_of_a_long_list_are_not_cut_apart() -> None:
    items = [f"- item number {number} of the list" for number in range(9)]
    found = cut(markdown("\n".join(items) + "\n"))
    assert all(set(text.split("\n")) <= set(items) for text in found)


def test_a_chunk_never_crosses_a_page() -> None:
    document = pages("one two", "three four", "", "five")
    assert [(c.text, c.page) for c in chunk(document, tokenize, DEFAULT)] == [
        ("one two", 1),
        ("three four", 2),
        ("five", 4),
    ]


@pytest.mark.parametrize(
    "hidden", ["<!-- a secret -->", "<!-- a\n\nsecret -->", "[ref]: http://secret.example 'secret'"]
)
def test_what_is_no_block_is_in_no_chunk(hidden: str) -> None:
    source = f"# Title\n\nBefore.\n\n{hidden}\n\nAfter.\n\n{hidden}\n\n# End\n\nof it\n"
    for settings in (DEFAULT, SMALL):
        found = check(markdown(source), settings)
        assert not any("secret" in c.text for c in found)
        assert [c.text for c in found] == ["# Title\n\nBefore.", "After.", "# End\n\nof it"]


def test_a_rule_keeps_nothing_apart_but_counts() -> None:
    assert cut(markdown("one\n\n***\n\ntwo\n")) == ["one\n\n***\n\ntwo"]
    assert cut(markdown("one\n\n" + "-" * 13 + "\n\ntwo\n")) == ["one", "two"]


def test_several_tokens_may_share_a_character() -> None:
    def syllables(text: str) -> list[tuple[int, int]]:
        return [(i, i + 1) for i, c in enumerate(text) for _ in range(3) if not c.isspace()]

    text = "한국어 문장입니다 " * 40
    found = chunk(Document(text, (Block(0, len(text) - 1),)), syllables, ChunkSettings())
    assert "".join(c.text for c in found).replace(" ", "") == text.replace(" ", "")
    assert max(len(c.text.replace(" ", "")) for c in found) <= 128 // 3 + 1


def test_small_sections_joined_in_one_chunk_stand_under_what_they_share() -> None:
    document = load(
        Path("a.md"), b"# Animals\n\n## Okapi\n\nIts tongue is long.\n\n## Axolotl\n\nIt keeps its gills.\n"
    )
    assert [c.heading for c in chunk(document, tokenize, ChunkSettings())] == ["Animals"]


# --- what is huge


@pytest.mark.parametrize("kind", ["heading", "title"])
def test_of_a_huge_heading_or_title_the_end_is_kept_and_read_once(kind: str) -> None:
    huge = " ".join(f"word{n}" for n in range(60_000))
    body = "A sentence of several words. " * 2_000
    blocks = (Block(0, len(body)),)
    if kind == "heading":
        blocks = (Block(0, 1, "heading", 1, "Top"), Block(1, 2, "heading", 2, huge), Block(2, len(body)))
    asked: list[int] = []

    def counted(text: str) -> Any:
        asked.append(len(text))
        return tokenize(text)

    placed = list(place(Document(body, blocks, title=huge), "name", counted, DEFAULT))[1:]
    assert len(placed) > 90
    assert {one.heading for one in placed} == {ending(huge)} and HEADING_CHARS - 12 < len(ending(huge)) <= HEADING_CHARS
    assert ending(huge).startswith("word") and ending(huge).endswith(" word59999")
    assert {one.context for one in placed} == {ending(huge)}  # fewer tokens than are encoded
    assert sum(asked) < len(body) + 4 * HEADING_CHARS


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("A > B", "A > B"),
        ("", ""),
        ("x" * 299 + " > B", "B"),
        ("x" * 400, "x" * HEADING_CHARS),
        ("a > " + "b " * 200, ("b " * 149).strip()),
    ],
)
def test_the_end_of_a_heading_path(path: str, kept: str) -> None:
    assert ending(path) == kept


@pytest.mark.parametrize("text", ["!?" * WINDOW, "! ? " * WINDOW, "line of words\n" * (WINDOW // 5)])
def test_a_huge_text_is_tokenised_in_windows(text: str) -> None:
    asked: list[int] = []

    def counted(part: str) -> Any:
        asked.append(len(part))
        return tokenize(part)

    document = Document(text, (Block(0, len(text)),))
    whole = chunk(document, _replayed(tokenize(text)), DEFAULT)
    assert chunk(document, counted, DEFAULT) == whole
    assert max(asked) <= WINDOW and sum(asked) == len(text)


@pytest.mark.parametrize("which", ["words", "real"])
def test_windows_change_nothing_of_a_real_document(which: str, request: pytest.FixtureRequest) -> None:
    encoder = WordEncoder() if which == "words" else request.getfixturevalue("real_encoder")
    paths = sorted((ROOT / "examples" / "peft_docs").rglob("*.md"))
    text = "\n\n".join(path.read_text("utf-8") for path in paths)[: 2 * WINDOW + 50_000]
    assert len(text) > 2 * WINDOW
    document = markdown(text)
    whole = chunk(document, _replayed(encoder.tokenize(document.text)), DEFAULT)
    assert chunk(document, encoder.tokenize, DEFAULT) == whole


def _replayed(spans: Any) -> Any:
    """A tokenizer of one text, part by part, that knows the tokens of the whole."""
    starts, first = [start for start, _ in spans], 0

    def part(window: str) -> Any:
        nonlocal first
        start, first = first, first + len(window)
        return [(a - start, b - start) for a, b in spans[bisect_left(starts, start) : bisect_left(starts, first)]]

    return part
