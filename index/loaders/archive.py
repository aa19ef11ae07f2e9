"""Formats that are a zip of XML parts: opened in memory, within bounds, and without following what the XML refers to.

Nothing is ever unpacked to disk, so names of entries are harmless.
"""

import io
import re
import zipfile
import zlib
from pathlib import PurePosixPath
from typing import Any

from index.errors import LoadError

MAX_ENTRIES = 20_000
MAX_UNPACKED = 1 << 30
MAX_RATIO, RATIO_COUNTS_FROM = 150, 64 << 20
"""Texts shrink to a tenth, some tables to a fiftieth; what shrinks more and is large was made to harm."""

REL = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
STRICT = re.compile(rb"http://purl\.oclc\.org/ooxml/(\w+)/(\w+)")
"""Office's other names for its namespaces, in files saved as "Strict Open XML"."""
CORE_TITLE = ".//{http://purl.org/dc/elements/1.1/}title"


class Archive:
    """The parts of one file."""

    def __init__(self, data: bytes) -> None:
        """Raises LoadError for what is damaged, encrypted, or unpacks to far more than it is."""
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
            entries = self._zip.infolist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
            raise LoadError("the file is damaged (cut short?): open it in its own program and save it again") from error
        unpacked = sum(entry.file_size for entry in entries)
        # Each entry is read up to the size that it declares and no further, so the sum cannot be lied about.
        too_dense = unpacked > RATIO_COUNTS_FROM and unpacked > MAX_RATIO * len(data)
        if len(entries) > MAX_ENTRIES or unpacked > MAX_UNPACKED or too_dense:
            raise LoadError(f"unpacks to {unpacked >> 20:,} MiB in {len(entries):,} parts, far more than documents do")
        if any(entry.flag_bits & 1 for entry in entries):
            raise LoadError("the file is password-protected; save a copy without the password")
        self.names = frozenset(entry.filename for entry in entries)

    def read(self, name: str) -> bytes:
        """The content of a part; empty if there is none of that name."""
        if name not in self.names:
            return b""
        try:
            with self._zip.open(name) as part:
                # By a number, or it would all be unpacked before what is beyond the declared size is cut off.
                return part.read(self._zip.getinfo(name).file_size + 1)
        except (
            zipfile.BadZipFile,
            zlib.error,
            NotImplementedError,
            EOFError,
            OSError,
            RuntimeError,
            ValueError,
        ) as error:
            raise LoadError(
                f"its part '{name[:80]}' is damaged: open it in its own program and save it again"
            ) from error

    def xml(self, name: str) -> Any:
        """The root element of a part; None if there is none of that name."""
        data = self.read(name)
        return parse_xml(data, name) if data.strip() else None

    def relations(self, part: str) -> dict[str, str]:
        """Of an Office part: ids to the names of the parts that they mean."""
        folder, name = part.rpartition("/")[::2]
        root = self.xml(f"{folder}/_rels/{name}.rels")
        if root is None:
            return {}
        inside = [element for element in root if element.get("TargetMode") != "External"]
        return {element.get("Id", ""): joined(folder, element.get("Target", "")) for element in inside}

    def title(self) -> str:
        """What an Office document's properties say."""
        root = self.xml("docProps/core.xml")
        return "" if root is None else root.findtext(CORE_TITLE) or ""


def parse_xml(data: bytes, name: str) -> Any:
    """The root element. Entities stay unexpanded and nothing outside is fetched, so XML bombs have nothing to burn."""
    from lxml import etree

    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True, remove_pis=True
    )
    if b"//purl.oclc.org/ooxml/" in data[:10_000]:
        data = STRICT.sub(rb"http://schemas.openxmlformats.org/\1/2006/\2", data)
    try:
        return etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        raise LoadError(f"its part '{name[:80]}' is damaged: open it in its own program and save it again") from error


def joined(folder: str, target: str) -> str:
    """The name of the part that `target` means within `folder`."""
    if target.startswith("/"):
        return target[1:]
    parts: list[str] = []
    for part in PurePosixPath(folder, target).parts:
        if part == "..":
            del parts[-1:]
        else:
            parts.append(part)
    return "/".join(parts)
