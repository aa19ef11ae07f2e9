"""HTML to documents: what a reader sees, without what belongs to the site. Also the body of EPUB chapters and mails."""

import re
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from typing import Any

from index.document import Document
from index.loaders.builder import MAX_COLUMNS, Builder
from index.loaders.source import Source
from index.loaders.text import decode

# Elements of a page that are about the site, not about its subject. No forms: some sites put the whole page in one.
CHROME = (
    *("script", "style", "noscript", "template", "svg", "nav", "footer", "select", "button", "head", "iframe"),
    *("math-annotation", "object", "canvas", "datalist"),
)
# What readers do not see, and what is about the site in the pages that Sphinx and DocBook make.
# By attribute first: that is twice as fast as by element.
HIDDEN = (
    "//@hidden/.. | //@style[contains(translate(., ' ', ''), 'display:none')]/.."
    " | //@role[.='navigation' or .='search']/.. | //@class[.='headerlink' or .='navheader' or .='navfooter']/.."
)
CONTROLS = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML may not hold."""
BLOCK_NAMES = (
    "address article aside blockquote body caption center dd details dialog div dl dt fieldset figcaption figure form "
    "header hr html legend li main menu ol p section summary table tbody td tfoot th thead tr ul"
)
BLOCKS = frozenset(BLOCK_NAMES.split())
HEADINGS = {f"h{level}": level for level in range(1, 7)}
LAYOUT = ("table", "pre", "ul", "ol", "dl", "blockquote", *HEADINGS)
"""What a cell holds in tables that arrange a page rather than list data."""
MAX_SPAN = 100
"""Most rows or columns that a cell is repeated for."""
SPANNED = 100
"""Characters of a cell that are repeated in the rows that it spans."""
SELF_CLOSED = re.compile(
    rb"<(title|script|style|textarea|iframe|noscript|a|div|span|p|td|th)(\s[^<>]*)?/>", re.IGNORECASE
)


def load_html(source: Source) -> list[Document]:
    """HTML and XHTML of any age."""
    builder = Builder()
    title = add_html(builder, source.data)
    return [builder.document(title)]


def add_html(builder: Builder, data: bytes, encoding: str | None = None) -> str:
    """Adds what a page shows to the builder; gives the page's title."""
    tree = _parse(data, encoding)
    if tree is None:
        return ""
    title = tree.findtext(".//title") or ""
    for element in [*tree.iter(*CHROME), *_hidden()(tree)]:
        _drop(element)
    _Walk(builder).walk(tree)
    return " ".join(title.split())


@cache
def _hidden() -> Any:
    from lxml import etree

    return etree.XPath(HIDDEN)


def _drop(element: Any) -> None:
    """Takes an element out, and leaves the text that follows it."""
    parent = element.getparent()
    if parent is None:
        return
    if element.tail:
        before = element.getprevious()
        if before is None:
            parent.text = (parent.text or "") + element.tail
        else:
            before.tail = (before.tail or "") + element.tail
    parent.remove(element)


def _parse(data: bytes, encoding: str | None) -> Any:
    from lxml import etree

    if data.lstrip()[:5].lower() == b"<?xml":
        data = SELF_CLOSED.sub(rb"<\1\2></\1>", data)
    parser = etree.HTMLParser(
        encoding=encoding or html_encoding(data), huge_tree=True, remove_comments=True, remove_pis=True, no_network=True
    )
    try:
        tree = etree.fromstring(data, parser)
    except etree.XMLSyntaxError:  # nothing but comments
        return None
    # libxml2 drops without a word what follows the 2048th level.
    return _flat(data) if parser.error_log.filter_from_fatals() else tree


def _flat(data: bytes) -> Any:
    """A page nested too deep for a tree, as paragraphs side by side."""
    from lxml import etree

    parser = _Flat()
    parser.feed(decode(data))
    parser.close()
    body = etree.Element("body")
    for tag, words in parser.pieces:
        element = etree.Element("p" if tag != "title" else tag)
        element.text = CONTROLS.sub("\ufffd", words)
        body.append(element)
    return body


class _Flat(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[tuple[str, str]] = []
        self._tag = ""
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._tag = tag
        self._silent += tag in CHROME and tag != "head"

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""
        self._silent -= tag in CHROME and tag != "head" and self._silent > 0

    def handle_data(self, data: str) -> None:
        if data.strip() and not self._silent:
            self.pieces.append((self._tag, data.strip()))


def html_encoding(data: bytes) -> str | None:
    """`utf-8` when the bytes are valid UTF-8, declared or not; None: the page's own word counts."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        declared = re.search(rb"charset|<\?xml[^>]*encoding", data[:2048], re.IGNORECASE)
        return None if declared or data.startswith((b"\xff\xfe", b"\xfe\xff")) else "cp1252"
    return "utf-8"


class _Walk:
    """One pass over a page's elements, without recursion: pages may be nested as deep as they are long."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self._inline: list[str] = []
        self._lines: list[str] = []
        self._lists: list[int | None] = []
        """Each open list's next number; None where items have none."""
        self._prefix = ""
        self._join = False
        """Whether the next block goes on with the lines before it, as a definition with its term."""

    def walk(self, tree: Any) -> None:
        """Adds all that stands below `tree`."""
        from lxml import etree

        inline = self._inline
        walker = etree.iterwalk(tree, events=("start", "end"))
        for event, element in walker:
            tag = element.tag
            if event == "start":
                if tag in BLOCKS or tag in HEADINGS or tag == "pre" or tag == "br":
                    if self._opens(tag, element):
                        walker.skip_subtree()
                    elif element.text:
                        inline.append(element.text)
                elif element.text:
                    inline.append(element.text)
            else:
                if tag in BLOCKS:
                    self._closes(tag)
                if element.tail:
                    inline.append(element.tail)
        self._block()

    def _opens(self, tag: str, element: Any) -> bool:
        """Returns whether all below the element is dealt with."""
        if tag in ("td", "th"):
            self._block()
        elif tag == "br":
            self._line()
        elif tag in HEADINGS:
            self._block()
            self._builder.heading("".join(element.itertext()), HEADINGS[tag])
            return True
        elif tag == "pre":
            self._block()
            self._builder.code(_preformatted(element))
            return True
        elif tag == "table":
            self._block()
            if next(element.iterdescendants(*LAYOUT), None) is None:
                self._table(element)
                return True
        else:
            self._boundary(tag)
        return False

    def _boundary(self, tag: str) -> None:
        """A block begins; in lists and definitions it only begins a line."""
        if tag in ("ul", "ol", "menu"):
            self._line() if self._lists else self._block()
            self._lists.append(1 if tag == "ol" else None)
        elif tag == "li":
            self._line()
            self._prefix = self._bullet()
        elif tag == "dd":
            self._line()
            self._join = bool(self._lines)
        elif self._lists or self._join:
            self._line()
        else:
            self._block()

    def _bullet(self) -> str:
        indent = "  " * min(len(self._lists) - 1, 10)
        if not self._lists or self._lists[-1] is None:
            return f"{indent}- "
        self._lists[-1] += 1
        return f"{indent}{self._lists[-1] - 1}. "

    def _closes(self, tag: str) -> None:
        if tag in ("ul", "ol", "menu") and self._lists:
            self._line()
            self._lists.pop()
        if self._lists:
            self._line()
        elif tag == "dt":
            self._line()
            self._join = True
        else:
            self._block()

    def _line(self) -> None:
        if self._inline:
            words = " ".join("".join(self._inline).split())
            self._inline.clear()
            if words:
                self._lines.append(self._prefix + words)
                self._prefix = ""
                self._join = False

    def _block(self) -> None:
        self._line()
        self._join = False
        if self._lines:
            self._builder.text("\n".join(self._lines))
            self._lines.clear()

    def _table(self, table: Any) -> None:
        caption = table.find("caption")
        if caption is not None:
            self._builder.text(" ".join("".join(caption.itertext()).split()))
        rows = [[cell for cell in row if cell.tag in ("td", "th")] for row in table.iter("tr")]
        rows = [row for row in rows if row]
        header = bool(rows) and all(cell.tag == "th" for cell in rows[0])
        self._builder.table(_spread(rows), header)


def _preformatted(element: Any) -> str:
    for br in element.iter("br"):
        br.tail = "\n" + (br.tail or "")
    return "".join(element.itertext()).replace("\r\n", "\n").replace("\r", "\n").replace("\xa0", " ")


def _spread(rows: list[list[Any]]) -> Iterator[list[str]]:
    """The cells' texts. A cell that spans rows stands in each of them; one that spans columns fills the first."""
    open_: dict[int, tuple[int, str]] = {}
    for row in rows:
        texts: list[str] = []
        for cell in row[:MAX_COLUMNS]:
            if len(texts) > MAX_COLUMNS:
                break
            while len(texts) in open_:
                texts.append(_still(open_, len(texts)))
            text = _cell(cell)
            down, across = _span(cell, "rowspan"), _span(cell, "colspan")
            if down > 1:
                open_[len(texts)] = (down - 1, text[:SPANNED])
            texts += [text] + [""] * (across - 1)
        while len(texts) in open_:
            texts.append(_still(open_, len(texts)))
        yield texts


def _cell(cell: Any) -> str:
    for element in cell.iter("br", "p", "div"):  # lines of a cell, which a table's row has no room for
        element.tail = " " + (element.tail or "")
    return "".join(cell.itertext())


def _still(open_: dict[int, tuple[int, str]], column: int) -> str:
    left, text = open_.pop(column)
    if left > 1:
        open_[column] = (left - 1, text)
    return text


def _span(cell: Any, name: str) -> int:
    value = cell.get(name, "1")
    return min(int(value), MAX_SPAN) if value.isascii() and value.isdigit() and len(value) < 10 else 1
