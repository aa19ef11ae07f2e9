"""Files to documents: Markdown, plain text, HTML and PDF. Raises LoadError with the reason; knows nothing of chunks."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from index.document import Block, Document
from index.errors import LoadError

PARAGRAPH = re.compile(r"\S(?:.*(?:\n(?!\s*\n).*)*)?")
PAGE_BREAK = "\f\n"
FRONT_MATTER = re.compile(r"---\n(?=---\n|(?:#.*\n)*[\w\"'].*:)(?:.*\n)*?---\n")
# Elements of a page that are about the site, not about its subject. No forms: some sites put the whole page in one.
HTML_CHROME = ("script", "style", "noscript", "template", "svg", "nav", "footer", "select", "button")
# What texts that are not UTF-8 are written in. Rarer ones are left out: detection takes them for these too often.
ENCODINGS = (
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1255", "cp1256", "cp1257", "koi8_r", "iso8859_2"),
    *("cp932", "euc_jp", "gb18030", "big5", "cp949"),
)


def load(path: Path, data: bytes) -> Document:
    """The document in `data`, the content of the file at `path`; the suffix decides the format.

    Raises:
        LoadError: the format is not supported, or the file holds no readable text; the message is the reason.
    """
    loader = LOADERS.get(path.suffix.lower())
    if loader is None:
        raise LoadError(f"files of type '{path.suffix or path.name}' are not read (known: {' '.join(sorted(LOADERS))})")
    if not data.strip():
        raise LoadError("the file is empty")
    document = loader(data)
    if not document.blocks:
        raise LoadError("the file holds no text")
    return document


def decode(data: bytes) -> str:
    """Text of unknown encoding with newlines as `\\n`: UTF-8 if valid, then by byte order mark, then by detection."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = data.decode("utf-16", errors="replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = _detected(data)
    if "\0" in text or _share_of_controls(text) > 0.02:
        raise LoadError("the content is binary, not text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _detected(data: bytes) -> str:
    from charset_normalizer import from_bytes

    matches = from_bytes(data[:100_000], cp_isolation=list(ENCODINGS))
    best = matches.best()
    if best is None:
        raise LoadError("the text encoding is not recognised; save the file as UTF-8")
    # A Western text often reads as well in a Central European or Baltic code page, with other accents: prefer its own.
    western = any("cp1252" in m.could_be_from_charset and m.coherence >= best.coherence for m in matches)
    return data.decode("cp1252" if western else best.encoding, errors="replace")


def _share_of_controls(text: str) -> float:
    sample = text[:50_000]
    controls = sum(1 for c in sample if (c < " " and c not in "\t\n\r\f\x1b") or c == "\ufffd")
    return controls / max(1, len(sample))


def paragraphs(text: str, start: int = 0, end: int | None = None) -> Iterator[Block]:
    """The stretches of `text[start:end]` that blank lines set apart."""
    for match in PARAGRAPH.finditer(text, start, len(text) if end is None else end):
        yield Block(match.start(), match.start() + len(match.group().rstrip()))


def load_text(data: bytes) -> Document:
    """Plain text: a block per paragraph."""
    text = decode(data)
    return Document(text, tuple(paragraphs(text)))


def load_markdown(data: bytes) -> Document:
    """CommonMark with tables. The text stays as written, so spans are spans of the file; comments are left out."""
    from markdown_it import MarkdownIt

    text = decode(data)
    line_starts = [0, *(m.end() for m in re.finditer("\n", text)), len(text)]
    front = FRONT_MATTER.match(text)
    # Empty lines in its place keep the line numbers, and nothing left open in it swallows what follows.
    body = "\n" * front.group().count("\n") + text[front.end() :] if front else text
    blocks: list[Block] = []
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    for position, token in enumerate(tokens):
        if token.level or not token.map or token.nesting < 0:
            continue
        start, end = line_starts[token.map[0]], line_starts[min(token.map[1], len(line_starts) - 1)]
        block = _markdown_block(text, token, tokens[position + 1 : position + 2], start, end)
        if block:
            blocks.append(block)
    title = next((b.title for b in blocks if b.kind == "heading"), "")
    return Document(text, tuple(blocks), title)


def _markdown_block(text: str, token: Any, following: list[Any], start: int, end: int) -> Block | None:
    end = start + len(text[start:end].rstrip())
    start += len(text[start:end]) - len(text[start:end].lstrip("\n"))
    if start >= end or token.type == "hr":
        return None
    if token.type == "html_block" and _is_comment(text[start:end]):
        return None
    if token.type == "heading_open":
        return Block(start, end, "heading", int(token.tag[1]), _words(following))
    return Block(start, end, "code" if token.type in ("fence", "code_block") else "text")


def _is_comment(markup: str) -> bool:
    # One that is not closed is text: it would hide the rest of the document.
    return markup.endswith("-->") and not re.sub(r"<!--.*?-->", "", markup, flags=re.DOTALL).strip()


def _words(inline: list[Any]) -> str:
    """A heading's words without markup: the text of its inline tokens."""
    children = inline[0].children or [] if inline else []
    words = [
        " " if token.type.endswith("break") else token.content for token in children if token.type != "html_inline"
    ]
    return " ".join("".join(words).split())


def load_html(data: bytes) -> Document:
    """HTML as the text that a browser would lay out, without menus, scripts and footers."""
    from inscriptis import Inscriptis
    from inscriptis.css_profiles import STRICT_CSS_PROFILE
    from inscriptis.model.config import ParserConfig
    from lxml import etree, html

    try:
        tree = html.fromstring(data, parser=html.HTMLParser(encoding=_html_encoding(data), huge_tree=True))
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
        return _bare_html(data, title)
    text = laid_out.get_text()
    marks = [(a.start, a.end, a.metadata) for a in laid_out.get_annotations()]
    return Document(text, tuple(_html_blocks(text, marks)), title)


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


def load_pdf(data: bytes) -> Document:
    """PDF text page by page, in the file's own order."""
    import pypdfium2 as pdfium

    if b"%PDF-" not in data[:1024]:
        raise LoadError("the content is not a PDF")
    try:
        pdf = pdfium.PdfDocument(data)
    except pdfium.PdfiumError as error:
        if "password" in str(error).lower():
            raise LoadError("the PDF is password-protected; save a copy without the password") from error
        raise LoadError("the PDF is corrupt; open it in a viewer and save it again") from error
    with pdf:
        pages = [_pdf_page(pdf, number) for number in range(len(pdf))]
    if not any(page.strip() for page in pages):
        raise LoadError("the PDF holds no text, only images (a scan?); run OCR on it first, for example ocrmypdf")
    blocks, start = list[Block](), 0
    for number, page in enumerate(pages, 1):
        blocks += (replace(b, start=b.start + start, end=b.end + start, page=number) for b in paragraphs(page))
        start += len(page) + len(PAGE_BREAK)
    return Document(PAGE_BREAK.join(pages), tuple(blocks))


def _pdf_page(pdf: Any, number: int) -> str:
    import pypdfium2 as pdfium

    try:
        text: str = pdf[number].get_textpage().get_text_range()
    except pdfium.PdfiumError as error:
        raise LoadError(f"page {number + 1} of the PDF is corrupt; open it in a viewer and save it again") from error
    # U+FFFE is PDFium's mark for a hyphen at a line's end: the word goes on in the next line.
    text = re.sub("\ufffe\\s*", "", text.replace("\r\n", "\n").replace("\r", "\n"))
    return text.replace("\f", "\n").replace("\0", "")


LOADERS: dict[str, Callable[[bytes], Document]] = {
    ".md": load_markdown,
    ".markdown": load_markdown,
    ".txt": load_text,
    ".html": load_html,
    ".htm": load_html,
    ".pdf": load_pdf,
}
