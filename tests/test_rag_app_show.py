"""An answer made ready for the page: no image is fetched, nothing is interpreted, quotes are marked in their place."""

from pathlib import Path
from typing import Any

import pytest

from rag_app.show import as_markdown, sources

TEXT = "Alpha beta gamma. Delta epsilon. Zeta <b>eta</b> & theta."


def hit(rank: int, text: str = TEXT, **other: Any) -> dict[str, Any]:
    values = {"rank": rank, "source": f"/docs/file{rank}.md", "page": None, "heading": "", "start": 100, "text": text}
    return {**values, "end": 100 + len(text), **other}


def cited(n: int, quote: str) -> dict[str, Any]:
    start = 100 + TEXT.index(quote)
    return {"n": n, "start": start, "end": start + len(quote), "quote": quote}


@pytest.mark.parametrize(
    "text",
    [
        "![x](http://evil/?q=secret)",
        "![x][ref]\n\n[ref]: http://evil/",
        "![ref]\n\n[ref]: http://evil/",
        "[![x](http://evil/a.png)](http://evil/)",
        "\\![x](http://evil/)",
        "\\\\![x](http://evil/)",
        # what looks like code to a hasty reader, and is none to Markdown
        "see ``` ![x](http://evil/)",
        "see ```\n\n![x](http://evil/)",
        "\\`![x](http://evil/)`",
        "``![x](http://evil/)`",
        "`a ![x](http://evil/)",
        "> ```\n![x](http://evil/)\n> ```",
        "- ```\n![x](http://evil/)",
        "- a\n  ```\n![x](http://evil/)\n```",
        "~~~\n```\n~~~\n![x](http://evil/)",
        "````\n```\n````\n![x](http://evil/)",
        "```\ncode\n```\n![x](http://evil/)\n```\ncode\n```",
    ],
)
def test_an_image_is_never_fetched(text: str) -> None:
    markdown = pytest.importorskip("markdown_it", reason="to run: pip install markdown-it-py").MarkdownIt()
    assert "<img" in markdown.render("![x](http://evil/)")
    assert "<img" not in markdown.render(as_markdown(text))


def test_an_image_is_shown_as_what_was_written() -> None:
    assert as_markdown("see ![x](http://evil/)") == r"see !\[x](http://evil/)"
    assert as_markdown("[a link](http://example.org/) stays!") == "[a link](http://example.org/) stays!"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It costs $5 or $6.", r"It costs \$5 or \$6."),
        ("$$x^2$$", r"\$\$x^2\$\$"),
        ("a :smile: b", r"a \:smile: b"),
        (":material/home: :streamlit:", r"\:material/home: \:streamlit:"),
        (":red[x] :blue-background[y]", r"\:red[x] \:blue-background[y]"),
        (":+1: :-1: :100: :8ball:", r"\:+1: \:-1: \:100: \:8ball:"),
        ("Note: this. http://x/", "Note: this. http://x/"),
        ("", ""),
        ("**bold** and *thin*\n\n- a\n- b\n\n| a | b |", "**bold** and *thin*\n\n- a\n- b\n\n| a | b |"),
    ],
)
def test_money_icons_and_colours_stay_text(text: str, expected: str) -> None:
    assert as_markdown(text) == expected


@pytest.mark.parametrize(
    "code",
    ["`$HOME`", "`a:b:c`", "```sh\necho $HOME :smile:\n```", "```\nprice = '$5'", "``` `$x` ```", "`x[0]` and `$y`"],
)
def test_code_stays_as_it_is(code: str) -> None:
    assert as_markdown(code) == code
    assert as_markdown(f"For $5:\n{code}").endswith(code)


def test_a_source_is_named_by_number_file_page_and_heading() -> None:
    details = {"hits": [hit(1), hit(2, page=7, heading="Guide > Oil")], "citations": [cited(2, "Delta epsilon.")]}
    first, second = sources(details)
    assert (first.label, first.cited) == ("[1] file1.md", False)
    assert (second.label, second.cited) == ("[2] file2.md · page 7 · Guide > Oil", True)
    assert first.place == f"/docs/file1.md, characters 100 to {100 + len(TEXT)}"
    assert second.place == f"/docs/file2.md · page 7, characters 100 to {100 + len(TEXT)}"


def test_a_place_below_the_current_folder_is_shown_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (source,) = sources({"hits": [hit(1, source=str(tmp_path / "docs" / "a.md"), start=1000, end=123456)]})
    assert source.place == "docs/a.md, characters 1,000 to 123,456"


@pytest.mark.parametrize(
    "quotes",
    [
        [],
        ["Delta epsilon."],
        [TEXT],
        ["Alpha", "theta."],
        ["Alpha beta", "beta gamma."],
        ["Alpha beta gamma. Delta", "beta", "gamma. Delta epsilon."],
        ["Delta epsilon.", "Delta epsilon.", "Delta"],
        ["Alpha beta gamma.", " Delta epsilon."],
        ["<b>eta</b> & theta"],
    ],
)
def test_the_pieces_are_the_passage_with_just_the_quotes_marked(quotes: list[str]) -> None:
    (source,) = sources({"hits": [hit(1)], "citations": [cited(1, quote) for quote in quotes]})
    assert "".join(text for text, _ in source.pieces) == TEXT
    assert all(text for text, _ in source.pieces)
    marked = [flag for text, flag in source.pieces for _ in text]
    wanted = [False] * len(TEXT)
    for quote in quotes:
        for place in range(TEXT.index(quote), TEXT.index(quote) + len(quote)):
            wanted[place] = True
    assert marked == wanted
    assert source.cited == bool(quotes)


def test_pieces_are_plain_text_for_the_page_to_escape() -> None:
    (source,) = sources({"hits": [hit(1)], "citations": [cited(1, "<b>eta</b>")]})
    assert source.pieces[1:] == (("<b>eta</b>", True), (" & theta.", False))


def test_passages_that_the_model_did_not_read_are_left_out() -> None:
    details = {"hits": [hit(1), hit(2), hit(3)], "dropped": 1, "citations": []}
    assert [source.label for source in sources(details)] == ["[1] file1.md", "[2] file2.md"]


@pytest.mark.parametrize(
    "details",
    [
        {},
        {"hits": None},
        {"hits": []},
        {"error": "x", "stopped": True},
        # damaged
        {"hits": "x"},
        {"hits": [{"rank": 1}]},
        {"hits": [hit(1)], "dropped": "x"},
        {"hits": [{**hit(1), "text": 7}]},
        {"hits": [hit(1)], "citations": [{"n": 1}]},
    ],
)
def test_an_answer_without_passages_or_with_damaged_ones_has_no_sources(details: dict[str, Any]) -> None:
    assert sources(details) == []


def test_an_empty_passage_has_no_pieces() -> None:
    (source,) = sources({"hits": [hit(1, text="")]})
    assert source.pieces == ()
