"""Archives of adapters: what is taken from them, and that no archive writes outside, swells or hangs."""

import gzip
import io
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rag_app.adapters import archive
from rag_app.adapters.registry import Registry
from rag_app.errors import AdapterInvalid
from tests.test_rag_app_adapters_registry import exported, names, peft, tiny, trained

pytestmark = pytest.mark.usefixtures("nothing_bundled")

__all__ = ["tiny"]
ENDS = (".zip", ".tar", ".tar.gz", ".tgz")


def packed(folder: Path, to: Path, top: str = "") -> Path:
    """An archive of a folder's files, below `top`."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    inside = [f"{top}{path.relative_to(folder).as_posix()}" for path in files]
    if to.suffix == ".zip":
        with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as file:
            for path, name in zip(files, inside, strict=True):
                file.write(path, name)
    else:
        with tarfile.open(to, "w" if to.suffix == ".tar" else "w:gz") as tar:
            for path, name in zip(files, inside, strict=True):
                tar.add(path, name)
    return to


def tarred(to: Path, *members: tuple[dict[str, Any], bytes]) -> Path:
    with tarfile.open(to, "w") as tar:
        for about, content in members:
            info = tarfile.TarInfo()
            for key, value in {"size": len(content), **about}.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))
    return to


def zipped(to: Path, *members: tuple[str | zipfile.ZipInfo, bytes], how: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(to, "w", how) as file:
        for about, content in members:
            file.writestr(about, content)
    return to


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("top", ["", "./", "my adapter/"])
def test_an_archive_holds_a_folder_or_its_files(end: str, top: str, tmp_path: Path, tiny: Path) -> None:
    made = packed(exported(tmp_path / "made", tiny), tmp_path / f"x{end}", top)
    entry = Registry().add(made)
    assert entry.name == "tax"
    assert names(entry.folder) == {"adapter.gguf", "run.json", "proof.json", "manifest.json", "complete.json"}
    assert names(Registry().root) == {"tax", ".lock"}


def test_a_run_in_an_archive_gives_both_forms_and_the_archive_its_name(tmp_path: Path, tiny: Path) -> None:
    run = trained(tmp_path / "run", tiny)
    exported(run / "export" / "gguf-lora", tiny)
    (run / "adapter" / "steal.py").write_text("import os")
    (run / "checkpoint-1").mkdir()
    (run / "checkpoint-1" / "optimizer.pt").write_bytes(b"x" * 100_000)
    assert Registry().row(Registry().add(packed(run, tmp_path / "My Tax.tar.gz")).name)["forms"] == ["gguf", "peft"]
    assert Registry().names() == ["my-tax"]
    assert not any(path.suffix in (".py", ".pt") for path in Registry().root.rglob("*"))


def test_a_plain_folder_of_peft_in_an_archive_needs_its_base(tmp_path: Path, tiny: Path) -> None:
    made = packed(peft(tmp_path / "made"), tmp_path / "Plain.zip", "adapter/")
    with pytest.raises(AdapterInvalid, match="give it with --base MODEL"):
        Registry().add(made)
    assert Registry().add(made, base=str(tiny)).name == "plain"


def test_errors_name_the_archive_and_not_where_it_was_unpacked(tmp_path: Path, tiny: Path) -> None:
    folder = exported(tmp_path / "made", tiny)
    os.truncate(folder / "adapter.gguf", 100)
    made = packed(folder, tmp_path / "cut.zip")
    with pytest.raises(AdapterInvalid, match=r"'.*/cut.zip' is not as it was written .adapter.gguf has changed."):
        Registry().add(made)
    with pytest.raises(AdapterInvalid, match=r"'.*/none.zip' is no adapter: name a run"):
        Registry().add(zipped(tmp_path / "none.zip", ("README.md", b"")))


def _sized(size: int) -> Callable[[Path], Path]:
    """A tar archive whose first member says that it is of another size than it is."""

    def make(to: Path) -> Path:
        tarred(to / "x.tar", ({"name": "adapter.gguf", "size": 0}, b""))
        info = tarfile.TarInfo("adapter.gguf")
        info.size = size
        data = info.tobuf(tarfile.GNU_FORMAT)
        (to / "x.tar").write_bytes(data + bytes(10240))
        return to / "x.tar"

    return make


def _zipped_badly(change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    """An archive that holds nothing, whose last bytes are changed."""

    def make(to: Path) -> Path:
        (to / "x.tgz").write_bytes(change(gzip.compress(bytes(10240))))
        return to / "x.tgz"

    return make


def _extended(to: Path) -> Path:
    """A header before a member says that 3 GB of names follow; 100 MB of zeros do, in 100 kB."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 3 << 30
    with gzip.open(to / "x.tar.gz", "wb", compresslevel=1) as stream:
        stream.write(info.tobuf(tarfile.GNU_FORMAT))
        stream.write(bytes(10 << 20))
    return to / "x.tar.gz"


def _sparse(to: Path) -> Path:
    about = {"GNU.sparse.size": str(8 << 20), "GNU.sparse.numblocks": "1", "GNU.sparse.map": f"{8 << 20},0"}
    return tarred(to / "x.tar", ({"name": "adapter.gguf", "pax_headers": about}, b""))


def _zip_link(to: Path) -> Path:
    info = zipfile.ZipInfo("adapter.gguf")
    info.external_attr = 0o120777 << 16
    return zipped(to / "x.zip", (info, b"/etc/passwd"))


def _zip_lying(to: Path) -> Path:
    """Says 10 bytes, and holds more: in the directory and before the file itself."""
    data = zipped(to / "x.zip", ("adapter.gguf", b"x" * 5000)).read_bytes()
    (to / "x.zip").write_bytes(data.replace(struct.pack("<L", 5000), struct.pack("<L", 10)))
    return to / "x.zip"


def _encrypted(to: Path) -> Path:
    data = bytearray(zipped(to / "x.zip", ("adapter.gguf", b"x")).read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    (to / "x.zip").write_bytes(data)
    return to / "x.zip"


def _zip64(to: Path) -> Path:
    """A second directory's end, which counts more than the first one, stands before it."""
    data = zipped(to / "x.zip", ("adapter.gguf", b"x")).read_bytes()
    at = data.index(b"PK\5\6")
    (to / "x.zip").write_bytes(data[:at] + b"PK\6\7" + bytes(16) + data[at:])
    return to / "x.zip"


def _tar(**about: Any) -> Callable[[Path], Path]:
    return lambda to: tarred(to / "x.tar", ({"name": "adapter.gguf", **about}, b""))


def _zip(*given: str) -> Callable[[Path], Path]:
    return lambda to: zipped(to / "x.zip", *((name, b"x") for name in given))


def _bytes(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(to: Path) -> Path:
        (to / name).write_bytes(content)
        return to / name

    return make


ODD = "has a name with characters that file systems take otherwise"
REFUSED = {
    "absolute": (_tar(name="/tmp/adapter.gguf"), "'/tmp/adapter.gguf' lies outside of it"),
    "above": (_tar(name="a/../../adapter.gguf"), "'a/../../adapter.gguf' lies outside of it"),
    "absolute, zipped": (_zip("/adapter.gguf"), "'/adapter.gguf' lies outside of it"),
    "above, zipped": (_zip("../adapter.gguf"), "'../adapter.gguf' lies outside of it"),
    "above, of no use": (_zip("../../.bashrc"), "'../../.bashrc' lies outside of it"),
    "a drive": (_zip("C:/adapter.gguf"), ODD),
    "backslashes": (_zip("..\\adapter.gguf"), ODD),
    "a line's end": (_tar(name="a\nb"), ODD),
    "a command to the terminal": (_tar(name="\x1b[31m"), ODD),
    "a name that is reversed": (_zip("\u202efugg"), ODD),
    "bytes that are no text": (_tar(name="\udcff"), ODD),
    "an empty part": (_zip("a//adapter.gguf"), ODD),
    "a long name": (_zip("x" * 201), "has too long a name"),
    "deep folders": (_zip("a/" * 9 + "x"), "has too long a name"),
    "a link": (_tar(type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is a link or a device"),
    "a hard link": (_tar(type=tarfile.LNKTYPE, linkname="/etc/passwd"), "is a link or a device"),
    "a device": (_tar(type=tarfile.CHRTYPE, devmajor=1, devminor=5), "is a link or a device"),
    "a pipe": (_tar(type=tarfile.FIFOTYPE), "is a link or a device"),
    "a sparse file": (_sparse, "is a link or a device, or of another odd kind"),
    "a link, zipped": (_zip_link, "is a link or a device"),
    "encrypted": (_encrypted, "is encrypted"),
    "packed otherwise": (
        lambda to: zipped(to / "x.zip", ("adapter.gguf", b"x"), how=zipfile.ZIP_LZMA),
        "is packed in a way that is not read",
    ),
    "twice": (_zip("run.json", "a/run.json", "./run.json"), "'./run.json' is there twice"),
    "twice on some systems": (_zip("run.json", "RUN.json"), "'RUN.json' is there twice"),
    "a file and a folder": (_zip("run.json", "run.json/run.json"), "'run.json/run.json' is a file and a folder"),
    "many files": (_zip(*map(str, range(1001))), "holds more than 1,000 files"),
    "many files, tarred": (
        lambda to: tarred(to / "x.tar", *(({"name": str(number)}, b"") for number in range(1001))),
        "holds more than 1,000 files",
    ),
    "a large directory": (_zip(*(f"{number}{'x' * 190}" for number in range(5000))), "holds more than 1,000 files"),
    "another directory": (_zip64, "holds more than 1,000 files"),
    "huge": (_sized(5 << 30), "holds more than 4 GiB: no adapter is as large"),
    "not as long as said": (_sized(1 << 20), "damaged|is not as long as the archive says"),
    "long names": (_extended, "the archive is damaged .a name is too long.: take it anew"),
    "a lie about the size": (_zip_lying, "the archive is damaged|is not as long as the archive says"),
    "no zip": (_bytes("x.zip", b"PK" + bytes(100)), "the archive is damaged .it has no directory."),
    "empty": (_bytes("x.zip", b""), "the archive is damaged .it has no directory."),
    "no tar": (_bytes("x.tar", b"x" * 2000), "the archive is damaged"),
    "a wrong sum": (_zipped_badly(lambda data: data[:-8] + bytes([data[-8] ^ 1]) + data[-7:]), "damaged .CRC"),
    "no sum": (_zipped_badly(lambda data: data[:-8]), "damaged .Compressed file ended"),
    "no gzip": (_bytes("x.tgz", b"\x1f\x8b" + b"x" * 2000), "the archive is damaged"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "phrase"), REFUSED.values(), ids=REFUSED)
def test_hostile_and_damaged_archives_are_refused_by_name(
    make: Callable[[Path], Path], phrase: str, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    made = make(tmp_path / "in")
    before = {path for path in tmp_path.rglob("*") if path.name != "rag-home"}
    with pytest.raises(AdapterInvalid, match=phrase) as caught:
        Registry().add(made)
    assert "\n" not in str(caught.value).replace("a\nb", "")
    home = tmp_path / "rag-home"
    assert {path for path in tmp_path.rglob("*")} - before <= {home, home / "adapters", home / "adapters" / ".lock"}


def test_only_what_is_wanted_is_ever_written(tmp_path: Path) -> None:
    members = [(name, b"x") for name in ("a/run.json", "a/run.py", "a/b/adapter_model.bin", "a/b/complete.json")]
    made = zipped(tmp_path / "x.zip", *members)
    with archive.unpacked(made, tmp_path / "in", frozenset({"run.json", "complete.json"})) as folder:
        assert folder.name == "a"
        assert {path.relative_to(folder).as_posix() for path in folder.rglob("*")} == {
            "run.json",
            "b",
            "b/complete.json",
        }
    assert names(tmp_path / "in") == set()


def test_real_bytes_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "BYTES", 1000)
    members = [(name, b"x" * 600) for name in ("adapter.gguf", "notes.txt")]  # what is left out counts, too
    for made in (
        zipped(tmp_path / "x.zip", *members),
        tarred(tmp_path / "x.tar", *(({"name": n}, b) for n, b in members)),
    ):
        with pytest.raises(AdapterInvalid, match="the archive holds more than 0 GiB"):
            Registry().add(made)


@pytest.mark.parametrize("end", ENDS)
def test_an_archive_cut_or_changed_anywhere_is_taken_whole_or_refused(end: str, tmp_path: Path, tiny: Path) -> None:
    made = packed(exported(tmp_path / "made", tiny), tmp_path / f"x{end}")
    whole, outcomes = made.read_bytes(), set[str]()
    for part in range(1, 12):
        at = len(whole) * part // 12
        for harmed in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :]):
            made.write_bytes(harmed)
            try:
                entry = Registry().add(made, replace=True)
            except AdapterInvalid as error:
                outcomes.add("refused")
                assert "\n" not in str(error)
            else:
                assert Registry().get(entry.name, hashed=True).manifest.rank == 2
    assert "refused" in outcomes


def test_what_a_killed_process_has_unpacked_goes_with_the_next(tmp_path: Path, tiny: Path) -> None:
    made = packed(exported(tmp_path / "made", tiny), tmp_path / "x.zip")
    left = Registry().root / ".archive.0a1b2c.part"
    left.mkdir(parents=True)
    (left / "adapter.gguf").write_text("half")
    Registry().add(made)
    assert names(Registry().root) == {"tax", ".lock"}
