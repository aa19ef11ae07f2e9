"""HTML to documents: what a reader sees, without what belongs to the site."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser

from index.document import Block, Document
from index.errors import LoadError
from index.loaders.source import Source
from index.loaders.text import decode, paragraphs

# Elements of a page that are about the site, not about its subject. No forms: some sites put the whole page in one.
HTML_CHROME = ("script", "style", "noscript", "template", "svg", "nav", "footer", "select", "button")


def load_html(source: Source) -> list[Document]:
    """HTML as the text that a browser would lay out, without menus, scripts and footers."""
    from inscriptis import Inscriptis
    from inscriptis.css_profiles import STRICT_CSS_PROFILE
    from inscriptis.model.config import ParserConfig
    from lxml import etree, html

    try:
        tree = html.fromstring(
            source.data, parser=html.HTMLParser(encoding=_html_encoding(source.data), huge_tree=True)
        )
    except etree.ParserError as error:  # nothing but comments
        raise LoadError("the file holds no text") from error
    title = " ".join((tree.findtext(".//title") or "").split())
    for element in list(tree.iter(*HTML_CHROME)):
        if element.getparent() is not None:
            element.drop_tree()
    rules = {f"h{level}": [f"h{level}"] for level in range(1, 7)} | {"pre": ["code"]}
    try:
        # The other profile indents by every div and sets blanks around every span, within words too.
        laid_out = Inscriptis(tree, ParserConfig(css=STRICT_CSS_PROFILE, annotation_rules=rules))
    except RecursionError:
        return [_bare_html(source.data, title)]
    text = laid_out.get_text()
    marks = [(a.start, a.end, a.metadata) for a in laid_out.get_annotations()]
    return [Document(text, tuple(_html_blocks(text, marks)), title)]


class _BareText(HTMLParser):
    """Collects the text of a page nested too deep for a tree; a blank line stands for every tag."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._silent += tag in HTML_CHROME

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in HTML_CHROME and self._silent > 0

    def handle_data(self, data: str) -> None:
        if data.strip() and not self._silent:
            self.pieces.append(data.strip())


def _bare_html(data: bytes, title: str) -> Document:
    parser = _BareText()
    parser.feed(decode(data))
    text = "\n\n".join(parser.pieces)
    return Document(text, tuple(paragraphs(text)), title)


def _html_encoding(data: bytes) -> str | None:
    """`utf-8` when the bytes are valid UTF-8, declared or not; None: the page's own word counts."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        declared = re.search(rb"charset", data[:2048], re.IGNORECASE)
        return None if declared or data.startswith((b"\xff\xfe", b"\xfe\xff")) else "cp1252"
    return "utf-8"


def _html_blocks(text: str, marks: list[tuple[int, int, str]]) -> Iterator[Block]:
    position = 0
    for start, end, label in sorted(marks):
        stripped = text[start:end].strip()
        if start < position or not stripped:
            continue
        yield from paragraphs(text, position, start)
        first = text.index(stripped, start)
        if label == "code":  # with the blanks of its first line: they are indentation
            yield Block(max(start, text.rfind("\n", start, first) + 1), first + len(stripped), "code")
        else:
            yield Block(first, first + len(stripped), "heading", int(label[1]), " ".join(stripped.split()))
        position = end
    yield from paragraphs(text, position)
