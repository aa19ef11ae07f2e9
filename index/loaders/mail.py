"""Mails (eml): the subject as title, who wrote when to whom, the text, and attachments of formats that are read."""

import email.policy
from collections.abc import Callable
from email.message import EmailMessage
from typing import Any

from index.document import Document
from index.errors import LoadError
from index.loaders.builder import Builder
from index.loaders.html import add_html
from index.loaders.source import Source
from index.loaders.text import decode

HEADERS = ("From", "To", "Cc", "Date")
MAX_PARTS = 500


def load_mail(source: Source, load: Callable[[Source], list[Document]]) -> list[Document]:
    """One document a mail. `load` reads the attachments."""
    message = email.message_from_bytes(source.data, policy=email.policy.default)
    if not any(name in message for name in ("From", "Subject", "Date", "Received", "Message-ID")):
        raise LoadError("the content is not a mail")
    builder = Builder()
    subject = _header(message, "Subject")
    builder.heading(subject, 1)
    about = [(name, _header(message, name)) for name in HEADERS]
    builder.text("\n".join(f"{name}: {value}" for name, value in about if value))
    _add_body(builder, message)
    for number, part in enumerate(message.walk()):
        if number > MAX_PARTS:
            source.warnings.append(f"only the first {MAX_PARTS} parts of the mail are read")
            break
        if name := _file_name(part):
            _add_attachment(builder, source, name, part, load)
    return [builder.document(subject)]


def _header(message: EmailMessage, name: str) -> str:
    try:
        return " ".join(str(message.get(name, "")).split())
    except (ValueError, IndexError, AttributeError, TypeError, RecursionError):  # it stumbles over broken addresses
        return ""


def _file_name(part: Any) -> str:
    try:
        name = part.get_filename() or ""
    except (ValueError, IndexError, AttributeError, TypeError):
        return ""
    return str(name).replace("\\", "/").rpartition("/")[2]


def _add_body(builder: Builder, message: EmailMessage) -> None:
    try:
        body = message.get_body(("plain", "html"))
    except (ValueError, AttributeError, KeyError):
        body = None
    if body is None:
        return
    data = _payload(body)
    if body.get_content_type() == "text/html":
        add_html(builder, data, body.get_content_charset())
    else:
        builder.paragraphs(_text(data, body.get_content_charset()))


def _payload(part: Any) -> bytes:
    try:
        data = part.get_payload(decode=True)
    except (ValueError, AttributeError, KeyError):
        return b""
    return data if isinstance(data, bytes) else b""


def _text(data: bytes, charset: str | None) -> str:
    try:
        return data.decode(charset or "utf-8")
    except (UnicodeDecodeError, LookupError):
        return decode(data) if data.strip() else ""


def _add_attachment(
    builder: Builder, source: Source, name: str, part: Any, load: Callable[[Source], list[Document]]
) -> None:
    try:
        for document in load(Source(name, _payload(part), source.ocr, source.warnings, source.depth + 1)):
            builder.heading(name, 2)
            builder.embed(document, deeper=2)
    except LoadError as error:
        source.warnings.append(f"the attachment '{name[:80]}' is left out: {error}")
