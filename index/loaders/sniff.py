"""What a file's first bytes say it is, whatever its name."""

import io
import zipfile

MAGIC = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"BM", "a BMP picture"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"\xca\xfe\xba\xbe", "a program"),
    (b"SQLite format 3\0", "a SQLite database"),
    (b"OggS", "a sound or a film"),
    (b"ID3", "a sound"),
    (b"fLaC", "a sound"),
    (b"RIFF", "a picture, sound or film"),
    (b"\0\0\0\x1cftyp", "a film"),
    (b"\0\0\0\x20ftyp", "a film"),
    (b"wOFF", "a font"),
    (b"wOF2", "a font"),
)
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
"""What Office files were before 2007, and what encrypted ones still are."""
TYPES = {
    "application/epub+zip": ".epub",
    "application/vnd.oasis.opendocument.text": ".odt",
    "application/vnd.oasis.opendocument.spreadsheet": ".ods",
    "application/vnd.oasis.opendocument.presentation": ".odp",
}
PARTS = (("word/document", ".docx"), ("ppt/presentation", ".pptx"), ("xl/workbook", ".xlsx"))


def format_of(data: bytes) -> str:
    """The suffix of the format that the content declares; empty if it declares none that is read."""
    if data.startswith(b"%PDF-"):
        return ".pdf"
    if data.startswith(b"{\\rtf"):
        return ".rtf"
    if data.startswith(b"PK\x03\x04"):
        return _zipped(data)
    if data.startswith(OLE):
        return _ole(data)
    return ""


def _zipped(data: bytes) -> str:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            if "mimetype" in names and archive.getinfo("mimetype").file_size < 200:
                return TYPES.get(archive.read("mimetype").decode("latin-1").strip(), "")
    except Exception:  # damaged in whatever way: the loader will say how
        return ""
    return next((suffix for start, suffix in PARTS for name in names if name.startswith(start)), "")


def _ole(data: bytes) -> str:
    names = [
        name for name in ("EncryptedPackage", "WordDocument", "PowerPoint Document", "Workbook") if _has(data, name)
    ]
    return ".xls" if names == ["Workbook"] else ""


def _has(data: bytes, stream: str) -> bool:
    return stream.encode("utf-16-le") in data


def refusal(data: bytes) -> str:
    """Why content of this kind is not read; empty if its first bytes say nothing against it."""
    if data.startswith(OLE):
        if _has(data, "EncryptedPackage"):
            return "the file is password-protected; save a copy without the password"
        if _has(data, "WordDocument"):
            return "the content is a Word document of before 2007: save it as .docx"
        if _has(data, "PowerPoint Document"):
            return "the content is a PowerPoint presentation of before 2007: save it as .pptx"
        if not _has(data, "Workbook") and not _has(data, "Book"):
            return "the content is an Office file of before 2007 of a kind that is not read"
    found = next((name for start, name in MAGIC if data.startswith(start)), "")
    # Two letters begin many a text too.
    return f"the content is {found}, not text" if found and _is_binary(data) else ""


def _is_binary(data: bytes) -> bool:
    head = data[:4000]
    return b"\0" in head or sum(byte < 9 or 13 < byte < 32 or byte > 126 for byte in head) > len(head) // 4


def is_html(data: bytes) -> bool:
    """Whether it begins as a web page does."""
    return data[:1000].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html"))
