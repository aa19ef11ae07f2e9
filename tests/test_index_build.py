"""Builds: what is read and encoded again, what is refused, and that no failure harms the index that is there."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index import (
    ChunkSettings,
    Index,
    IndexBusy,
    IndexDamaged,
    IndexMismatch,
    NoDocuments,
    NoIndex,
    build,
)
from index import generation as disk
from index.builder import PENDING, remove
from index.maintain import collect_garbage, verify
from index.pending import Pending
from index.store import FileRow, encoded, open_read_only, read_files
from index.vectors import Vectors
from tests.conftest import ROOT, WordEncoder

HOUR = 3600 * 10**9


def write(path: Path, text: str | bytes) -> Path:
    """Writes a file as if it had been there for long: its clock is beyond doubt."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    os.utime(path, ns=(0, time.time_ns() - HOUR))
    return path


def never() -> WordEncoder:
    raise AssertionError("the encoder is made, though there is nothing to encode")


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Content and time of every file and folder below; not of the lock, nor the time of the index folder it is in."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.name in ("lock", "builder"):
            continue
        data = b"" if path.is_dir() else path.read_bytes()
        of_an_index = path.is_dir() and (path / disk.POINTER).exists()
        found[str(path)] = (0 if of_an_index else path.stat().st_mtime_ns, data)
    return found


def contents(directory: Path, encoder: WordEncoder) -> dict[str, Any]:
    """Every chunk of an index, by its id, as it stands on disk; asserts that each has the vector of its words."""
    with Index.open(directory, encoder) as index:
        assert index.search("okapi", 1)
    assert verify(directory)[1] == []
    with closing(open_read_only(disk.current(directory))) as db:
        passages = db.execute("SELECT context, text FROM passages ORDER BY row").fetchall()
        sql = "SELECT chunk_id, path, record, page, heading, start, end, text FROM chunks JOIN passages USING (row) "
        rows = db.execute(sql + "JOIN files ON file = files.id").fetchall()
    vectors = Vectors(disk.current(directory)).get(np.arange(len(passages)))
    assert np.allclose(vectors, encoder.encode([encoded(*passage) for passage in passages]), atol=1e-3)
    del encoder.encoded[-len(passages) :]
    return {row[0]: row[1:] for row in rows}


def files_in(directory: Path) -> dict[str, FileRow]:
    """What the index knows of each file, by the file's name."""
    with closing(open_read_only(disk.current(directory))) as db:
        return {Path(path).name: row for path, row in read_files(db).items()}


def texts_in(directory: Path, encoder: WordEncoder) -> list[str]:
    return [row[-1] for row in contents(directory, encoder).values()]


def found_by(query: str, directory: Path, encoder: WordEncoder) -> tuple[str, str]:
    hit = Index.open(directory, encoder).search(query, 1)[0]
    return Path(hit.source).name, hit.text


def left_in(directory: Path) -> set[str]:
    """What stands in an index folder, its lock aside."""
    return {path.name for path in directory.iterdir()} - {"lock", "builder"}


def sections(number: int, word: str = "word") -> str:
    """A document of that many different sections, each a chunk of its own."""
    return "".join(f"# S{n}\n\n{' '.join(f'{word}{n}x{i}' for i in range(40))}\n\n" for n in range(number))


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    write(tmp_path / "docs" / "okapi.md", "# Okapi\n\nThe okapi lives in the Ituri rainforest.\n")
    write(tmp_path / "docs" / "axolotl.txt", "The axolotl keeps its gills for life.\n")
    write(tmp_path / "docs" / "deep" / "lunch.html", "<h1>Lunch</h1><p>The allowance is 14 euros.</p>")
    return tmp_path / "docs"


@pytest.fixture
def where(tmp_path: Path) -> Path:
    return tmp_path / "index"


# --- the first build, and one with nothing to do


def test_the_first_build(docs: Path, where: Path, encoder: WordEncoder) -> None:
    report = build([docs], where, encoder=encoder)
    assert report.seconds >= 0
    assert {**report.as_dict(), "seconds": 0} == {
        "generation": "gen-000001",
        "files_seen": 3,
        "files_indexed": 3,
        "files_unchanged": 0,
        "files_removed": 0,
        "files_failed": [],
        "files_skipped": [],
        "warnings": [],
        "chunks": 3,
        "chunks_encoded": 3,
        "seconds": 0,
    }
    assert left_in(where) == {"CURRENT", "gen-000001"}
    assert left_in(where / "gen-000001") == {"manifest.json", "vectors.faiss", "chunks.sqlite3", "bm25"}
    assert found_by("okapi rainforest", where, encoder) == (
        "okapi.md",
        "# Okapi\n\nThe okapi lives in the Ituri rainforest.",
    )
    assert found_by("euros allowance", where, encoder)[0] == "lunch.html"


def test_the_manifest_says_what_was_built(docs: Path, where: Path, encoder: WordEncoder) -> None:
    write(docs / "broken.pdf", b"no PDF")
    build([docs], where, encoder=encoder)
    manifest = disk.read_manifest(*disk.pointed_to(where))
    assert manifest.encoder == {"name": "words", "dimension": 64, "fingerprint": "words"}
    assert (manifest.precision, manifest.chunker, manifest.schema) == ("fp32", ChunkSettings().as_dict(), 2)
    assert [root["path"] for root in manifest.roots] == [str(docs)]
    assert (manifest.files, manifest.files_failed, manifest.chunks, manifest.passages) == (4, 1, 3, 3)
    rows = files_in(where)
    assert rows["okapi.md"].chunks == 1 and rows["okapi.md"].title == "Okapi" and not rows["okapi.md"].error
    assert rows["broken.pdf"].chunks == 0 and rows["broken.pdf"].error == "the content is not a PDF"
    for row in rows.values():
        stat = Path(row.path).stat()
        assert (row.size, row.mtime_ns, len(row.sha256)) == (stat.st_size, stat.st_mtime_ns, 64)


def test_the_index_is_under_the_home_by_default(
    docs: Path, tmp_path: Path, encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    build([docs], encoder=encoder)
    assert left_in(tmp_path / "rag-home") == {"index"}
    monkeypatch.delenv("RAG_HOME")
    monkeypatch.chdir(tmp_path)
    build(["docs"], encoder=encoder)
    assert left_in(tmp_path / ".rag" / "index") == {"CURRENT", "gen-000001"}
    assert Path(Index.open(encoder=encoder).search("okapi")[0].source).is_absolute()


def test_nothing_changed_nothing_done(docs: Path, where: Path, encoder: WordEncoder) -> None:
    build([docs], where, encoder=encoder)
    before = snapshot(docs.parent)
    report = build([docs], where, encoder=never)
    assert (report.generation, report.chunks, report.chunks_encoded) == ("gen-000001", 3, 0)
    assert (report.files_seen, report.files_indexed, report.files_unchanged) == (3, 0, 3)
    assert snapshot(docs.parent) == before


def test_an_encoder_may_be_given_or_made(docs: Path, where: Path, encoder: WordEncoder) -> None:
    build([docs], where, encoder=lambda: encoder)
    assert len(encoder.encoded) == 3


def test_progress_runs_to_the_end_of_each_stage(docs: Path, where: Path, encoder: WordEncoder) -> None:
    write(docs / "long.md", sections(300))
    calls: list[tuple[str, int, int]] = []
    build([docs], where, encoder=encoder, progress=lambda *call: calls.append(call))
    stages = [stage for stage, _, _ in calls]
    assert list(dict.fromkeys(stages)) == ["reading", "encoding", "writing"]
    for stage, total in (("reading", 4), ("encoding", 303), ("writing", 1)):
        done = [(number, of) for name, number, of in calls if name == stage]
        assert done == sorted(done) and done[-1] == (total, total) and {of for _, of in done} == {total}


# --- what changed is read, what is new is encoded


def test_a_changed_file_is_read_again_and_only_its_new_passages_are_encoded(
    docs: Path, where: Path, encoder: WordEncoder
) -> None:
    write(docs / "long.md", sections(5))
    build([docs], where, encoder=encoder)
    encoder.encoded.clear()
    write(docs / "long.md", sections(4) + "# New\n\nA new section about wombats.\n")
    report = build([docs], where, encoder=encoder)
    assert (report.generation, report.files_indexed, report.files_unchanged) == ("gen-000002", 1, 3)
    assert (report.files_removed, report.chunks_encoded, report.chunks) == (0, 1, 8)
    assert encoder.encoded == ["New\n# New\n\nA new section about wombats."]
    texts = texts_in(where, encoder)
    assert "# New\n\nA new section about wombats." in texts
    assert any("word3x0" in text for text in texts) and not any("word4x" in text for text in texts)


def test_an_added_file_is_found(docs: Path, where: Path, encoder: WordEncoder) -> None:
    build([docs], where, encoder=encoder)
    encoder.encoded.clear()
    write(docs / "wombat.txt", "The wombat digs.")
    report = build([docs], where, encoder=encoder)
    assert (report.files_seen, report.files_indexed, report.files_unchanged, report.chunks) == (4, 1, 3, 4)
    assert encoder.encoded == ["The wombat digs."]
    assert found_by("wombat", where, encoder) == ("wombat.txt", "The wombat digs.")


def test_a_deleted_file_leaves(docs: Path, where: Path, encoder: WordEncoder) -> None:
    build([docs], where, encoder=encoder)
    (docs / "okapi.md").unlink()
    encoder.encoded.clear()
    report = build([docs], where, encoder=encoder)
    assert (report.files_seen, report.files_removed, report.files_unchanged, report.chunks) == (2, 1, 2, 2)
    assert encoder.encoded == []
    assert not any("okapi" in text for text in texts_in(where, encoder))
    assert build([docs], where, encoder=never).files_removed == 0


def test_a_touched_file_is_unchanged(docs: Path, where: Path, encoder: WordEncoder) -> None:
    build([docs], where, encoder=encoder)
    os.utime(docs / "okapi.md")
    report = build([docs], where, encoder=never)
    assert (report.generation, report.files_unchanged) == ("gen-000001", 3)
    write(docs / "new.txt", "a reason for a new generation")
    report = build([docs], where, encoder=encoder)
    assert (report.generation, report.files_unchanged, report.files_indexed) == ("gen-000002", 3, 1)
    assert files_in(where)["okapi.md"].mtime_ns == (docs / "okapi.md").stat().st_mtime_ns  # not to be read for it again


def test_a_moved_file_is_not_encoded_again(docs: Path, where: Path, encoder: WordEncoder) -> None:
    build([docs], where, encoder=encoder)
    encoder.encoded.clear()
    (docs / "okapi.md").rename(docs / "deep" / "animal.md")
    report = build([docs], where, encoder=encoder)
    assert (report.files_removed, report.files_indexed, report.files_unchanged) == (1, 1, 2)
    assert (report.chunks_encoded, encoder.encoded) == (0, [])
    assert found_by("okapi", where, encoder)[0] == "animal.md"


def test_copies_are_encoded_once_and_each_is_kept(docs: Path, where: Path, encoder: WordEncoder) -> None:
    for name in ("one.md", "two.md", "deep/three.md"):
        write(docs / name, "# Same\n\nThe same words.\n")
    report = build([docs], where, encoder=encoder)
    assert (report.chunks, report.chunks_encoded) == (6, 4)
    assert encoder.encoded.count("Same\n# Same\n\nThe same words.") == 1
    (docs / "one.md").unlink()
    build([docs], where, encoder=encoder)
    assert found_by("same words", where, encoder)[0] in {"two.md", "three.md"}


def test_an_old_file_of_same_size_and_time_is_not_read(docs: Path, where: Path, encoder: WordEncoder) -> None:
    build([docs], where, encoder=encoder)
    stat = (docs / "okapi.md").stat()
    (docs / "okapi.md").write_bytes(bytes(stat.st_size))
    os.utime(docs / "okapi.md", ns=(0, stat.st_mtime_ns))
    assert build([docs], where, encoder=never).files_unchanged == 3


def test_a_file_of_another_size_is_read_whatever_its_time(docs: Path, where: Path, encoder: WordEncoder) -> None:
    build([docs], where, encoder=encoder)
    before = (docs / "axolotl.txt").stat().st_mtime_ns
    (docs / "axolotl.txt").write_text("The wombat.")
    os.utime(docs / "axolotl.txt", ns=(0, before))
    assert build([docs], where, encoder=encoder).files_indexed == 1
    assert "The wombat." in texts_in(where, encoder)


@pytest.mark.parametrize("another", [False, True], ids=["alone", "beside another change"])
def test_a_file_changed_within_the_tick_of_its_reading_is_noticed(
    docs: Path, where: Path, encoder: WordEncoder, another: bool
) -> None:
    tick = time.time_ns() + HOUR  # not before the build, however slow this machine is
    for animal in ("wombat", "jaguar"):
        (docs / "new.txt").write_text(f"The {animal}.")
        os.utime(docs / "new.txt", ns=(0, tick))
        if another:
            write(docs / "other.txt", f"not the {animal}")
        build([docs], where, encoder=encoder)
        assert found_by(f"the {animal}", where, encoder) == ("new.txt", f"The {animal}.")
    assert build([docs], where, encoder=never).files_indexed == 0


def test_many_small_builds_end_where_one_build_does(tmp_path: Path, where: Path) -> None:
    rng, encoder, docs = random.Random(7), WordEncoder(), tmp_path / "docs"
    names = [f"{folder}{number}.{kind}" for folder in ("", "sub/") for number in range(4) for kind in ("md", "txt")]
    for _ in range(12):
        for name in rng.sample(names, 4):
            match rng.randrange(4):
                case 0:
                    (docs / name).unlink(missing_ok=True)
                case 1:
                    write(docs / name, b"\0" if name.endswith("txt") else b" ")
                case _:
                    write(docs / name, sections(rng.randrange(1, 5), rng.choice(["word", "other"])))
        write(docs / "always.md", "# Always\n\nhere")
        build([docs], where, encoder=encoder)
    fresh = WordEncoder()
    build([docs], tmp_path / "fresh", encoder=fresh)
    everything = contents(where, encoder)
    assert everything == contents(tmp_path / "fresh", fresh) and len(everything) > 10


# --- several roots


def test_builds_of_several_folders_add_up(docs: Path, where: Path, encoder: WordEncoder, tmp_path: Path) -> None:
    other = write(tmp_path / "other" / "wombat.txt", "The wombat digs.").parent
    build([docs], where, encoder=encoder)
    encoder.encoded.clear()
    report = build([other], where, encoder=encoder)
    assert (report.files_seen, report.files_indexed, report.files_removed, report.chunks) == (1, 1, 0, 4)
    assert encoder.encoded == ["The wombat digs."]
    assert Index.open(where).status()["roots"] == [str(docs), str(other)]
    assert found_by("okapi", where, encoder)[0] == "okapi.md"

    (docs / "okapi.md").unlink()
    (other / "wombat.txt").unlink()
    write(other / "jaguar.txt", "The jaguar swims.")
    report = build([other], where, encoder=encoder)  # leaves the other folder's files as they were
    assert (report.files_removed, report.files_indexed, report.chunks) == (1, 1, 4)
    report = build([], where, encoder=encoder)  # all folders of earlier builds
    assert (report.files_seen, report.files_removed, report.files_unchanged, report.chunks) == (3, 1, 3, 3)


def test_rebuild_starts_from_nothing(docs: Path, where: Path, encoder: WordEncoder, tmp_path: Path) -> None:
    other = write(tmp_path / "other" / "wombat.txt", "The wombat digs.").parent
    build([docs, other], where, encoder=encoder)
    encoder.encoded.clear()
    report = build([docs], where, encoder=encoder, rebuild=True)
    assert (report.generation, report.files_indexed, report.chunks, report.chunks_encoded) == ("gen-000002", 3, 3, 3)
    assert len(encoder.encoded) == 3
    assert Index.open(where).status()["roots"] == [str(docs)]


def test_a_single_file_may_be_given(docs: Path, where: Path, encoder: WordEncoder) -> None:
    report = build([docs / "okapi.md"], where, encoder=encoder)
    assert (report.files_seen, report.chunks) == (1, 1)
    build([docs / "axolotl.txt"], where, encoder=encoder)
    assert len(contents(where, encoder)) == 2
    report = build([docs], where, encoder=encoder)
    assert (report.files_unchanged, report.files_indexed) == (2, 1)


def test_a_folder_of_nothing_new_is_remembered(docs: Path, where: Path, encoder: WordEncoder) -> None:
    build([docs / "okapi.md", docs / "axolotl.txt", docs / "deep"], where, encoder=encoder)
    report = build([docs], where, encoder=encoder)
    assert (report.files_unchanged, report.chunks_encoded) == (3, 0)
    write(docs / "new.txt", "The wombat digs.")
    assert build([], where, encoder=encoder).files_indexed == 1


def test_a_folder_given_twice_counts_once(docs: Path, where: Path, encoder: WordEncoder) -> None:
    report = build([docs, docs / "deep", docs / "okapi.md", f"{docs}/deep/.."], where, encoder=encoder)
    assert (report.files_seen, report.files_indexed, report.chunks) == (3, 3, 3)


def test_a_file_of_unknown_format_that_is_named_fails_and_says_so(
    docs: Path, where: Path, encoder: WordEncoder
) -> None:
    named = write(docs / "table.xyz", "a,b")
    report = build([docs / "okapi.md", named], where, encoder=encoder)
    assert [failed["path"] for failed in report.files_failed] == [str(named)]
    assert "'.xyz' are not read" in report.files_failed[0]["error"]
    assert report.files_skipped == []


def test_other_chunk_sizes_cut_every_document_anew(
    docs: Path, where: Path, encoder: WordEncoder, tmp_path: Path
) -> None:
    other = write(tmp_path / "other" / "long.txt", "word " * 100).parent
    build([docs, other], where, encoder=encoder)
    small = ChunkSettings(max_tokens=10, min_tokens=2, overlap_tokens=2)
    build([docs], where, encoder=encoder, settings=small)
    assert len(contents(where, encoder)) > 3
    assert max(len(text.split()) for text in texts_in(where, encoder)) <= 10
    assert Index.open(where).status()["chunker"] == small.as_dict()
    assert build([docs, other], where, encoder=never, settings=small).files_unchanged == 4


# --- files that cannot be read, and files that are passed over


def test_a_file_that_cannot_be_read_is_listed_and_the_others_are_indexed(
    docs: Path, where: Path, encoder: WordEncoder
) -> None:
    write(docs / "broken.pdf", b"no PDF")
    write(docs / "empty.md", b"")
    write(docs / "binary.txt", bytes(range(256)))
    expected = [
        {"path": str(docs / "binary.txt"), "error": "the text encoding is not recognised; save the file as UTF-8"},
        {"path": str(docs / "broken.pdf"), "error": "the content is not a PDF"},
        {"path": str(docs / "empty.md"), "error": "the file is empty"},
    ]
    report = build([docs], where, encoder=encoder)
    assert report.files_failed == expected
    assert (report.files_seen, report.files_indexed, report.chunks) == (6, 3, 3)
    assert Index.open(where).status()["files_failed"] == expected

    report = build([docs], where, encoder=never)  # neither read nor forgotten
    assert (report.generation, report.files_failed, report.files_unchanged) == ("gen-000001", expected, 3)

    write(docs / "empty.md", "Now there are words.")
    report = build([docs], where, encoder=encoder)
    assert report.files_failed == expected[:2]
    assert (report.files_indexed, report.files_unchanged, report.chunks) == (1, 3, 4)


def test_a_file_that_turns_bad_leaves_the_index(docs: Path, where: Path, encoder: WordEncoder) -> None:
    build([docs], where, encoder=encoder)
    write(docs / "okapi.md", b"\0\0\0")
    report = build([docs], where, encoder=encoder)
    assert (len(report.files_failed), report.files_removed, report.chunks) == (1, 0, 2)
    assert not any("okapi" in text for text in texts_in(where, encoder))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_read_permission_is_tried_again(docs: Path, where: Path, encoder: WordEncoder) -> None:
    (docs / "okapi.md").chmod(0)
    report = build([docs], where, encoder=encoder)
    assert report.files_failed == [{"path": str(docs / "okapi.md"), "error": "cannot be opened (Permission denied)"}]
    (docs / "okapi.md").chmod(0o644)
    report = build([docs], where, encoder=encoder)
    assert (report.files_failed, report.files_indexed, report.files_unchanged) == ([], 1, 2)


def refuse(path: Path) -> None:
    """Makes a file that exists and cannot be read, for root neither."""
    path.unlink(missing_ok=True)
    path.symlink_to("/proc/self/mem")


needs_proc = pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that even root cannot read")
UNREADABLE = "cannot be opened (Input/output error)"


@needs_proc
def test_a_new_file_that_the_system_does_not_give_is_tried_again(docs: Path, where: Path, encoder: WordEncoder) -> None:
    named = docs.parent / "named.md"
    refuse(named)
    failed = [{"path": str(named), "error": UNREADABLE}]
    report = build([docs, named], where, encoder=encoder)
    assert (report.files_failed, report.files_indexed, report.chunks) == (failed, 3, 3)
    report = build([], where, encoder=never)  # tried, in vain: no new generation for that
    assert (report.generation, report.files_failed, report.files_unchanged) == ("gen-000001", failed, 3)
    assert Index.open(where).status()["files_failed"] == failed
    named.unlink()
    write(named, "The wombat digs.")
    report = build([], where, encoder=encoder)
    assert (report.files_failed, report.files_indexed, report.files_unchanged) == ([], 1, 3)
    assert found_by("wombat", where, encoder)[0] == "named.md"


@needs_proc
def test_a_file_that_cannot_be_opened_any_more_keeps_what_the_index_has_of_it(
    docs: Path, where: Path, encoder: WordEncoder
) -> None:
    named = write(docs.parent / "named.md", "The wombat digs.")
    build([docs, named], where, encoder=encoder)
    refuse(named)
    failed = [{"path": str(named), "error": UNREADABLE}]
    report = build([], where, encoder=never)
    assert (report.generation, report.files_failed, report.files_unchanged) == ("gen-000001", failed, 3)
    write(docs / "new.md", "# New\n\nwords\n")
    report = build([], where, encoder=encoder)
    assert (report.generation, report.files_failed, report.files_removed) == ("gen-000002", failed, 0)
    assert found_by("wombat", where, encoder) == ("named.md", "The wombat digs.")
    named.unlink()
    write(named, "The jaguar swims.")
    assert build([], where, encoder=encoder).files_failed == []
    assert "The jaguar swims." in texts_in(where, encoder)


def test_a_folder_that_cannot_be_listed_keeps_its_documents(
    docs: Path, where: Path, encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    build([docs], where, encoder=encoder)
    scandir = os.scandir

    def refuses(path: Any) -> Any:
        if str(path).endswith("deep"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    (docs / "axolotl.txt").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuses)
        report = build([docs], where, encoder=encoder)
    assert (report.files_removed, report.chunks) == (1, 2)
    assert found_by("allowance", where, encoder)[0] == "lunch.html"
    shutil.rmtree(docs / "deep")
    assert build([docs], where, encoder=encoder).files_removed == 1


def test_a_folder_that_vanished_may_be_unmounted_and_says_so(
    docs: Path, where: Path, encoder: WordEncoder, tmp_path: Path
) -> None:
    other = write(tmp_path / "other" / "wombat.txt", "The wombat digs.").parent
    build([docs, other], where, encoder=encoder)
    shutil.rmtree(other)
    before = snapshot(where)
    with pytest.raises(NoDocuments) as raised:
        build([], where, encoder=encoder)
    assert str(raised.value) == (
        f"'{other}' does not exist: mount it, or take it out of the index by: rag-index rm {other}"
    )
    assert snapshot(where) == before
    assert build([docs], where, encoder=encoder).files_removed == 0  # the others can still be brought up to date
    with pytest.raises(NoDocuments, match=f"'{other}' does not exist"):  # cut anew without it, it would be lost
        build([docs], where, encoder=encoder, settings=ChunkSettings(64))
    remove([other], where)
    assert build([], where, encoder=encoder).files_unchanged == 3
    assert not any("wombat" in text for text in texts_in(where, encoder))


def test_a_single_file_that_vanished_leaves(docs: Path, where: Path, encoder: WordEncoder) -> None:
    build([docs / "okapi.md", docs / "axolotl.txt"], where, encoder=encoder)
    (docs / "okapi.md").unlink()
    report = build([], where, encoder=encoder)
    assert (report.files_removed, report.files_unchanged, report.chunks) == (1, 1, 1)
    assert Index.open(where).status()["roots"] == [str(docs / "axolotl.txt")]
    (docs / "axolotl.txt").unlink()
    with pytest.raises(NoDocuments, match="nothing would be left in the index"):
        build([], where, encoder=encoder)


# --- taken out


def test_what_is_taken_out_stays_out_until_it_is_named(docs: Path, where: Path, encoder: WordEncoder) -> None:
    build([docs], where, encoder=encoder)
    report = remove([docs / "okapi.md", docs / "deep"], where)
    assert (report.generation, report.files_removed, report.chunks) == ("gen-000002", 2, 1)
    assert texts_in(where, encoder) == ["The axolotl keeps its gills for life."]
    status = Index.open(where).status()
    assert status["removed"] == [str(docs / "deep"), str(docs / "okapi.md")]
    write(docs / "deep" / "new.md", "# New\n\nwords\n")
    for paths in ([], [docs]):
        report = build(paths, where, encoder=never)
        assert (report.generation, report.files_seen, report.files_unchanged) == ("gen-000002", 1, 1)
    assert {"path": str(docs / "okapi.md"), "reason": "taken out by rm"} in report.files_skipped

    report = build([docs / "okapi.md"], where, encoder=encoder)
    assert (report.files_indexed, report.chunks_encoded, report.chunks) == (1, 0, 2)  # its vector was still there
    build([docs / "deep" / "lunch.html"], where, encoder=encoder)  # and one of a folder
    assert Index.open(where).status()["removed"] == [str(docs / "deep")]
    assert {Path(row[0]).name for row in contents(where, encoder).values()} == {
        "okapi.md",
        "axolotl.txt",
        "lunch.html",
    }
    assert build([], where, encoder=never).files_unchanged == 3
    build([docs / "deep"], where, encoder=encoder)
    assert Index.open(where).status()["removed"] == []
    assert "new.md" in files_in(where)


def test_what_is_not_in_the_index_cannot_be_taken_out(docs: Path, where: Path, encoder: WordEncoder) -> None:
    with pytest.raises(NoIndex):
        remove([docs], where)
    build([docs], where, encoder=encoder)
    before = snapshot(where)
    with pytest.raises(NoDocuments, match=f"the index holds nothing at '{docs}x'"):
        remove([docs / "okapi.md", f"{docs}x"], where)
    with pytest.raises(NoDocuments, match="nothing would be left in the index"):
        remove([docs], where)
    assert snapshot(where) == before


def test_a_root_that_is_taken_out_is_no_root_any_more(
    docs: Path, where: Path, encoder: WordEncoder, tmp_path: Path
) -> None:
    other = write(tmp_path / "other" / "wombat.txt", "The wombat digs.").parent
    build([docs, other], where, encoder=encoder)
    remove([docs], where)
    assert Index.open(where).status()["roots"] == [str(other)]
    assert build([], where, encoder=never).files_seen == 1
    assert build([docs], where, encoder=encoder).chunks == 4


def test_what_is_passed_over_is_listed_with_the_reason(
    docs: Path, where: Path, encoder: WordEncoder, tmp_path: Path
) -> None:
    secret = write(tmp_path / "outside" / "secret.md", "secret")
    write(docs / "table.xyz", "a,b")
    write(docs / ".hidden.md", "hidden")
    write(docs / ".git" / "config.txt", "hidden")
    (docs / "out.md").symlink_to(secret)
    (docs / "out").symlink_to(secret.parent)
    (docs / "nowhere.md").symlink_to(docs / "missing.md")
    (docs / "circle.md").symlink_to("circle.md")
    (docs / ".circle").symlink_to(".circle")
    (docs / "up").symlink_to(docs)
    report = build([docs], where, encoder=encoder)
    skipped = {str(Path(row["path"]).relative_to(docs)): row["reason"] for row in report.files_skipped}
    assert skipped == {
        "table.xyz": "files of type '.xyz' are not read",
        ".hidden.md": "hidden",
        ".git": "hidden",
        ".circle": "hidden",
        "out.md": "a link that leads out of the folder",
        "out": "a link to a folder",
        "up": "a link to a folder",
        "nowhere.md": "a link that leads nowhere",
        "circle.md": "a link that leads nowhere",
    }
    assert len(report.files_skipped) == len(skipped)
    assert (report.files_seen, report.files_failed, report.chunks) == (3, [], 3)
    assert not any("secret" in text for text in texts_in(where, encoder))


def test_links_within_the_folder_and_a_linked_folder_are_followed(
    docs: Path, where: Path, encoder: WordEncoder, tmp_path: Path
) -> None:
    (docs / "again.md").symlink_to(docs / "okapi.md")
    (tmp_path / "linked").symlink_to(docs)
    report = build([tmp_path / "linked"], where, encoder=encoder)
    passed = {"path": str(tmp_path / "linked" / "again.md"), "reason": "a link to a file that is indexed already"}
    assert (report.files_seen, report.files_skipped, report.chunks) == (3, [passed], 3)


def test_a_pipe_named_like_a_document_does_not_stop_the_build(docs: Path, where: Path, encoder: WordEncoder) -> None:
    os.mkfifo(docs / "pipe.md")
    assert build([docs], where, encoder=encoder).files_seen == 3


@pytest.mark.parametrize("name", [b"caf\xe9.md", b"caf\xe9.xyz", b"\xff/inside.md"])
def test_names_that_are_not_utf8_are_passed_over(docs: Path, where: Path, encoder: WordEncoder, name: bytes) -> None:
    path = os.path.join(os.fsencode(docs), name)  # noqa: PTH118  (pathlib takes no bytes)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        with open(path, "wb") as stream:  # noqa: PTH123
            stream.write(b"# Words")
    except OSError:
        pytest.skip("this file system takes no such name")
    report = build([docs], where, encoder=encoder)
    assert (report.files_seen, report.chunks, len(report.files_skipped)) == (3, 3, 1)
    assert json.loads(json.dumps(report.as_dict(), ensure_ascii=False).encode()) == report.as_dict()
    assert build([docs], where, encoder=never).generation == report.generation


def test_suffixes_may_be_upper_case(docs: Path, where: Path, encoder: WordEncoder) -> None:
    write(docs / "WOMBAT.TXT", "The wombat digs.")
    report = build([docs], where, encoder=encoder)
    assert (report.files_seen, report.chunks, report.files_skipped) == (4, 4, [])


def test_names_of_any_script_are_indexed(docs: Path, where: Path, encoder: WordEncoder) -> None:
    path = write(docs / "naïve résumé 日本 🦓 'q\" %20 #1?.md", "The wombat digs.")
    build([docs], where, encoder=encoder)
    assert Index.open(where, encoder).search("wombat", 1)[0].source == str(path)
    assert build([docs], where, encoder=never).files_unchanged == 4


def test_the_index_folder_within_the_documents_is_not_indexed(docs: Path, encoder: WordEncoder) -> None:
    directory = docs / "an index"
    for _ in range(2):
        report = build([docs], directory, encoder=encoder)
        write(directory / "note.md", "not a document of the user's")
        assert (report.generation, report.files_seen, report.files_skipped) == ("gen-000001", 3, [])
    report = build([docs / "deep"], docs / "deep" / ".rag" / "index", encoder=encoder)
    report = build([docs / "deep"], docs / "deep" / ".rag" / "index", encoder=encoder)
    assert report.files_seen == 1
    assert report.files_skipped == [{"path": str(docs / "deep" / ".rag"), "reason": "hidden"}]


# --- refused, and nothing is changed


def test_a_folder_with_other_files_is_no_place_for_an_index(docs: Path, where: Path, encoder: WordEncoder) -> None:
    """Builds remove old generations and drafts: what only looks like these must not be a person's own."""
    for name in ("draft-thesis", "gen-000001", "gen-20240131"):
        write(where / name / "precious.txt", "precious")
    with pytest.raises(NoDocuments, match="holds other files"):
        build([docs], where, encoder=encoder)
    assert sorted(p.name for p in where.rglob("*.txt")) == ["precious.txt"] * 3


@pytest.mark.parametrize("damage", [b"garbage all over", b""], ids=["overwritten", "emptied"])
@pytest.mark.parametrize("offset", [0, 4096], ids=["head", "later page"])
def test_a_damaged_store_of_unfinished_vectors_is_thrown_away(
    damage: bytes, offset: int, docs: Path, where: Path, encoder: WordEncoder
) -> None:
    pending = Pending(where.parent / "pending.sqlite3")
    pending.put([bytes([i]) * 32 for i in range(200)], encoder.encode(["a"] * 200))
    pending.close()
    where.mkdir(parents=True)
    whole = (where.parent / "pending.sqlite3").read_bytes()
    cut = whole[:offset] + damage * 300 if damage else whole[: offset + 10]
    (where / "pending.sqlite3").write_bytes(cut)
    assert build([docs], where, encoder=encoder).chunks > 0


@pytest.fixture(params=["no index yet", "an index"])
def perhaps_built(request: pytest.FixtureRequest, docs: Path, where: Path, encoder: WordEncoder) -> str:
    if request.param == "an index":
        build([docs], where, encoder=encoder)
    return str(request.param)


@pytest.mark.parametrize(
    "kind", ["empty", "only unknown formats", "nothing readable", "missing", "missing beside good"]
)
@pytest.mark.parametrize("rebuild", [False, True], ids=["", "rebuild"])
def test_no_documents_no_change(
    perhaps_built: str, docs: Path, where: Path, encoder: WordEncoder, kind: str, rebuild: bool
) -> None:
    folder = docs.parent / "none"
    if "missing" not in kind:
        folder.mkdir()
    if kind == "only unknown formats":
        write(folder / "a.xyz", "x")
    if kind == "nothing readable":
        write(folder / "a.pdf", "x")
        write(folder / "b.md", "")
    before = snapshot(docs.parent)
    with pytest.raises(NoDocuments) as raised:
        build([docs, folder] if kind == "missing beside good" else [folder], where, encoder=encoder, rebuild=rebuild)
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)
    expected = {
        "empty": "give a folder with texts, PDF, Office or HTML files",
        "only unknown formats": "1 files of other kinds were passed over",
        "nothing readable": "2 failed; the first",
    }
    assert expected.get(kind, "does not exist") in str(raised.value)
    assert snapshot(docs.parent) == before
    assert where.exists() == (perhaps_built == "an index")


def test_a_folder_that_was_emptied_leaves_the_last_index_in_place(
    docs: Path, where: Path, encoder: WordEncoder
) -> None:
    build([docs], where, encoder=encoder)
    shutil.rmtree(docs)
    docs.mkdir()
    before = snapshot(docs.parent)
    with pytest.raises(NoDocuments, match="nothing would be left in the index: remove its folder instead"):
        build([docs], where, encoder=encoder)
    assert snapshot(docs.parent) == before


def test_no_paths_and_no_index(where: Path, encoder: WordEncoder) -> None:
    with pytest.raises(NoDocuments, match=r"no folder to index is given\. Run: rag-index build FOLDER"):
        build([], where, encoder=encoder)
    assert not where.exists()


def test_a_failed_first_build_leaves_what_else_is_in_the_folder(
    docs: Path, tmp_path: Path, encoder: WordEncoder
) -> None:
    bad = write(tmp_path / "bad" / "a.pdf", "x").parent
    kept = write(tmp_path / "kept" / "mine.txt", "x")
    with pytest.raises(NoDocuments):
        build([bad], kept.parent, encoder=encoder)
    with pytest.raises(NoDocuments):
        build([bad], kept.parent / "new" / "index", encoder=encoder)
    assert left_in(kept.parent) == {"mine.txt"}


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (
            WordEncoder("letters", 32),
            r"built with 'words' \(64\), the encoder is 'letters' \(32\)\. Run: rag-index build --r",
        ),
        (
            WordEncoder("letters", 64),
            r"built with 'words' \(64\), the encoder is 'letters' \(64\)\. Run: rag-index build --r",
        ),
        (
            WordEncoder("words", 32),
            r"the encoder is 'words' \(32\) with other weights\. Run: rag-index build --rebuild",
        ),
    ],
)
def test_another_encoder_is_refused(
    docs: Path, where: Path, encoder: WordEncoder, other: WordEncoder, told: str
) -> None:
    build([docs], where, encoder=encoder)
    write(docs / "new.txt", "something to encode")
    before = snapshot(docs.parent)
    with pytest.raises(IndexMismatch, match=told):
        build([docs], where, encoder=other)
    assert snapshot(docs.parent) == before
    build([docs], where, encoder=other, rebuild=True)
    assert len(contents(where, other)) == 4


@pytest.mark.parametrize("name", [disk.MANIFEST, "vectors.faiss", "chunks.sqlite3"])
@pytest.mark.parametrize("harm", ["missing", "cut", "garbage"])
def test_a_damaged_index_is_refused_and_rebuilt_on_demand(
    docs: Path, where: Path, encoder: WordEncoder, name: str, harm: str
) -> None:
    build([docs], where, encoder=encoder)
    path = where / "gen-000001" / name
    data = path.read_bytes()
    path.unlink()
    if harm != "missing":
        path.write_bytes(data[: len(data) // 2] if harm == "cut" else random.Random(1).randbytes(len(data)))
    write(docs / "new.txt", "something to encode")
    before = snapshot(docs.parent)
    with pytest.raises(
        IndexDamaged, match=f"gen-000001/{name}.* Run: rag-index build --rebuild FOLDER --index {where}"
    ):
        build([docs], where, encoder=encoder)
    assert snapshot(docs.parent) == before
    assert build([docs], where, encoder=encoder, rebuild=True).generation == "gen-000002"
    assert len(contents(where, encoder)) == 4


HOLD = """
import sys, filelock
with filelock.FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_builds_at_once_are_refused(docs: Path, where: Path, encoder: WordEncoder) -> None:
    build([docs], where, encoder=encoder)
    write(docs / "new.txt", "something to encode")
    command = [sys.executable, "-c", HOLD, str(where / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin and holder.stdout and holder.stdout.readline() == "held\n"
        before = snapshot(docs.parent)
        with pytest.raises(IndexBusy, match=f"another build.* of '{where}' is running: wait"):
            build([docs], where, encoder=encoder)
        assert snapshot(docs.parent) == before
        assert found_by("okapi", where, encoder)[0] == "okapi.md"  # searching goes on
        holder.stdin.close()
    assert build([docs], where, encoder=encoder).generation == "gen-000002"


# --- generations


def test_two_generations_are_kept(docs: Path, where: Path, encoder: WordEncoder) -> None:
    for number in range(1, 5):
        write(docs / "new.txt", f"version {number}")
        assert build([docs], where, encoder=encoder).generation == f"gen-{number:06d}"
        kept = {f"gen-{n:06d}" for n in (number - 1, number) if n}
        assert left_in(where) == {"CURRENT", *kept}
    assert (where / "CURRENT").read_text().startswith("gen-000004 ")


# --- interrupted


class Interrupted(WordEncoder):
    """Gets Ctrl-C at its second batch."""

    def encode(self, texts: Any, progress: Callable[[int], None] | None = None) -> Any:
        if self.encoded:
            raise KeyboardInterrupt
        return super().encode(texts, progress)


def goes_on(docs: Path, where: Path) -> None:
    """Asserts that the next build encodes only what the interrupted one had not, and leaves nothing behind."""
    encoder = WordEncoder()
    report = build([docs], where, encoder=encoder)
    assert report.chunks_encoded == len(encoder.encoded) == 300 - 256
    assert left_in(where) <= {"CURRENT", "gen-000001", "gen-000002"}
    build([docs], where.with_name("fresh"), encoder=encoder)
    assert contents(where, encoder) == contents(where.with_name("fresh"), encoder)


def test_an_interrupted_first_build_goes_on_where_it_was(docs: Path, where: Path) -> None:
    write(docs / "long.md", sections(300))
    for name in ("okapi.md", "axolotl.txt", "deep/lunch.html"):
        (docs / name).unlink()
    with pytest.raises(KeyboardInterrupt):
        build([docs], where, encoder=Interrupted())
    assert left_in(where) == {PENDING}
    with pytest.raises(NoIndex):
        Index.open(where)
    goes_on(docs, where)


def test_an_interrupted_build_leaves_the_old_one_serving(docs: Path, where: Path, encoder: WordEncoder) -> None:
    build([docs], where, encoder=encoder)
    before = contents(where, encoder)
    write(docs / "long.md", sections(300))
    with pytest.raises(KeyboardInterrupt):
        build([docs], where, encoder=Interrupted())
    assert left_in(where) == {"CURRENT", "gen-000001", PENDING}
    assert contents(where, encoder) == before
    goes_on(docs, where)


def test_vectors_of_another_encoder_are_not_taken_over(docs: Path, where: Path) -> None:
    write(docs / "long.md", sections(300))
    with pytest.raises(KeyboardInterrupt):
        build([docs], where, encoder=Interrupted())
    other = WordEncoder("letters")
    assert build([docs], where, encoder=other).chunks_encoded == 303


def test_a_damaged_store_of_finished_vectors_is_only_a_loss_of_time(
    docs: Path, where: Path, encoder: WordEncoder
) -> None:
    write(where / PENDING, random.Random(1).randbytes(5000))
    assert build([docs], where, encoder=encoder).chunks_encoded == 3
    assert left_in(where) == {"CURRENT", "gen-000001"}


STUCK = """
import sys
from index import build
from tests.conftest import WordEncoder

class Stuck(WordEncoder):
    def encode(self, texts, progress=None):
        if self.encoded:
            print("stuck", flush=True)
            sys.stdin.read()
        return super().encode(texts, progress)

build([sys.argv[1]], sys.argv[2], encoder=Stuck())
"""


def test_a_build_killed_while_encoding_loses_no_finished_vector(docs: Path, where: Path, encoder: WordEncoder) -> None:
    build([docs], where, encoder=encoder)
    before = contents(where, encoder)
    write(docs / "long.md", sections(300))
    command = [sys.executable, "-c", STUCK, str(docs), str(where)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout and child.stdout.readline() == "stuck\n"
        child.kill()
    assert child.returncode == -signal.SIGKILL
    assert any(name.startswith("draft-") for name in left_in(where))
    assert contents(where, encoder) == before
    goes_on(docs, where)


KILLED_AT_EACH_STEP = """
import os, shutil, signal, sys
from pathlib import Path
import faiss, filelock, numpy, index.loaders
from index import build
from tests.conftest import WordEncoder

docs, built, copies = sys.argv[1:]
events = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "sqlite3.connect"}
for step in range(1, 200):
    where = shutil.copytree(built, f"{copies}/{step}")
    child = os.fork()
    if not child:
        seen = 0
        def hook(event, args):
            global seen
            if event in events and any(str(where) in str(arg) for arg in args):
                seen += 1
                if seen == step:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        build([docs], where, encoder=WordEncoder())
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
"""


@pytest.mark.slow
def test_a_build_killed_before_any_of_its_steps_on_disk_leaves_a_whole_index(
    docs: Path, where: Path, tmp_path: Path
) -> None:
    encoder = WordEncoder()
    build([docs], where, encoder=encoder)
    old = contents(where, encoder)
    write(docs / "new.md", "# New\n\nThe wombat digs.\n")
    (docs / "axolotl.txt").unlink()
    copies = tmp_path / "copies"
    copies.mkdir()
    subprocess.run(
        [sys.executable, "-c", KILLED_AT_EACH_STEP, str(docs), str(where), str(copies)],
        check=True,
        cwd=ROOT,
        timeout=120,
    )
    build([docs], where, encoder=encoder)
    new = contents(where, encoder)
    steps = sorted(copies.iterdir(), key=lambda path: int(path.name))
    assert len(steps) > 15 and new != old
    states = [contents(path, encoder) for path in steps]
    assert [state == new for state in states] == sorted(state == new for state in states)  # one switch, then the new
    assert states[0] == old and states[-1] == new and all(state in (old, new) for state in states)
    for path in steps:
        build([docs], path, encoder=encoder)
        assert contents(path, encoder) == new
        assert not any(name.startswith("draft-") for name in left_in(path))


# --- a full disk


def test_a_disk_that_fails_to_flush(
    docs: Path, where: Path, encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    build([docs], where, encoder=encoder)
    before = contents(where, encoder)
    write(docs / "new.txt", "The wombat digs.")
    flush, calls, fails_at = os.fsync, [0], [0]

    def full(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == fails_at[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    build([docs], shutil.copytree(where, where.with_name("dry")), encoder=encoder)
    last = calls[0]
    assert last > 6
    for fails_at[0] in range(1, last + 1):
        copy = shutil.copytree(where, where.with_name(f"copy{fails_at[0]}"))
        calls[0] = 0
        with pytest.raises(OSError, match="No space left"):
            build([docs], copy, encoder=encoder)
        # At the last one the pointer is replaced, only its folder is not flushed: the new index may serve.
        published = fails_at[0] == last
        generations = {"gen-000001", "gen-000002"} if published else {"gen-000001"}
        assert left_in(copy) - {f"{disk.POINTER}.new"} == {"CURRENT", PENDING, *generations}
        assert (contents(copy, encoder) == before) is not published
        encoder.encoded.clear()
        calls[0] = last
        build([docs], copy, encoder=encoder)
        assert encoder.encoded == [] and len(contents(copy, encoder)) == 4
        assert left_in(copy) - {PENDING} == {"CURRENT", "gen-000001", "gen-000002"}


@pytest.mark.parametrize("room", [0, 2_000, 10_000, 40_000, 70_000, 100_000, 150_000])
@pytest.mark.parametrize("first", [True, False], ids=["first build", "later build"])
def test_a_disk_without_room(docs: Path, where: Path, encoder: WordEncoder, room: int, first: bool) -> None:
    if not first:
        build([docs], where, encoder=encoder)
        before = contents(where, encoder)
    write(docs / "long.md", sections(300))
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, most))  # no file may grow beyond: writes fail as on a full disk
    try:
        with pytest.raises(OSError) as raised:
            build([docs], where, encoder=encoder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert str(raised.value)
    if first:
        assert not where.exists() or left_in(where) == {PENDING}
    else:
        assert left_in(where) - {PENDING} == {"CURRENT", "gen-000001"}
        assert contents(where, encoder) == before
    build([docs], where, encoder=encoder)
    assert len(contents(where, encoder)) == 303


def test_records_of_one_name_are_told_apart(tmp_path: Path, encoder: WordEncoder) -> None:
    rows = ['{"_id": "a", "text": "the same words"}'] * 2 + ['{"_id": "a", "text": "and others"}']
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "rows.jsonl").write_text("\n".join(rows), "utf-8")
    assert build([tmp_path / "docs"], tmp_path / "index", encoder=encoder).chunks == 3
    with Index.open(tmp_path / "index", encoder) as index:
        (hit,) = index.search("the same words", 1)
    assert (hit.source.rpartition("/")[2], len(hit.also)) == ("rows.jsonl#a", 1)


def test_records_that_bear_the_name_another_was_given(tmp_path: Path, encoder: WordEncoder) -> None:
    docs = tmp_path / "docs"
    write(
        docs / "a.jsonl",
        "\n".join(f'{{"_id": "{name}", "text": "hello world"}}' for name in ("a", "a", "a~2", "x.txt")),
    )
    write(docs / "a.jsonl#x.txt", "hello world")
    assert build([docs], tmp_path / "index", encoder=encoder).chunks == 5


def test_a_file_of_a_year_that_64_bits_do_not_reach(tmp_path: Path, encoder: WordEncoder) -> None:
    path = write(tmp_path / "docs" / "late.txt", "from the year 2400")
    os.utime(path, ns=(2**63 + 10**18, 2**63 + 10**18))
    if path.stat().st_mtime_ns < 2**63:
        pytest.skip("this file system keeps no such times")
    assert build([path.parent], tmp_path / "index", encoder=encoder).chunks == 1
    assert build([path.parent], tmp_path / "index", encoder=encoder).files_unchanged == 1


def test_damage_is_not_copied_into_the_next_generation(
    docs: Path, where: Path, encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(docs / "long.txt", "\n\n".join(f"Paragraph {n} tells of thing{n} and of {'word ' * 40}" for n in range(300)))
    build([docs], where, encoder=encoder)
    monkeypatch.setattr(disk, "HASHED_AT_OPENING", 0)  # as for a large index
    part = where / "gen-000001" / "chunks.sqlite3"
    data = bytearray(part.read_bytes())
    assert len(data) > disk.HEAD  # the harm is where opening does not look
    data[-100] ^= 1
    part.write_bytes(data)
    write(docs / "more.txt", "one more")
    with pytest.raises(IndexDamaged, match=r"chunks\.sqlite3 has changed since it was written"):
        build([docs], where, encoder=encoder)


@needs_proc
def test_other_chunk_sizes_do_not_lose_what_cannot_be_read_now(docs: Path, where: Path, encoder: WordEncoder) -> None:
    build([docs], where, encoder=encoder)
    refuse(docs / "okapi.md")
    named = docs / "okapi.md"
    with pytest.raises(
        NoDocuments, match=r"okapi\.md' cannot be opened .*: make it readable, or take it out by rag-index rm"
    ):
        build([docs, named], where, encoder=encoder, settings=ChunkSettings.of(64))
    assert Index.open(where, encoder).status()["files"] == 3


def test_links_in_an_index_lead_to_nothing_that_is_written_or_removed(
    docs: Path, where: Path, tmp_path: Path, encoder: WordEncoder
) -> None:
    build([docs], where, encoder=encoder)
    mine = tmp_path / "mine"
    for name in ("manifest.json", "a", "b"):
        write(mine / name, "precious")
    (where / "gen-000000").symlink_to(mine)
    (where / "CURRENT.new").symlink_to(mine / "a")
    (where / "builder").symlink_to(mine / "b")
    write(docs / "more.txt", "one more")
    build([docs], where, encoder=encoder)
    collect_garbage(where)
    assert {path.name: path.read_text() for path in mine.iterdir()} == dict.fromkeys(
        ("manifest.json", "a", "b"), "precious"
    )
    assert verify(where) == ("gen-000002", [])


def test_a_first_build_that_fails_removes_only_what_it_made(tmp_path: Path, encoder: WordEncoder) -> None:
    docs, where = tmp_path / "docs", tmp_path / "new" / "index"
    write(docs / "empty.txt", "")

    def put_notes() -> WordEncoder:
        write(where / "notes.txt", "mine")
        return encoder

    with pytest.raises(NoDocuments):
        build([docs], where, encoder=put_notes)
    assert [path.name for path in where.iterdir()] == ["notes.txt"]


def test_a_giant_that_was_refused_is_not_hashed(
    docs: Path, where: Path, encoder: WordEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(docs / "giant.txt", "")
    os.truncate(docs / "giant.txt", 2**40)
    assert len(build([docs], where, encoder=encoder).files_failed) == 1
    os.utime(docs / "giant.txt", (10**9, 10**9))
    monkeypatch.setattr("index.plan._sha256", lambda path: 1 / 0 if path.name == "giant.txt" else None)
    assert len(build([docs], where, encoder=encoder).files_failed) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["CURRENT", "gen-000001/manifest.json"])
def test_a_pipe_in_the_place_of_a_part_hangs_nothing(docs: Path, where: Path, encoder: WordEncoder, name: str) -> None:
    build([docs], where, encoder=encoder)
    (where / name).unlink()
    os.mkfifo(where / name)
    with pytest.raises(IndexDamaged):
        Index.open(where, encoder)
    with pytest.raises(IndexDamaged):
        build([docs], where, encoder=encoder)


def test_a_rebuild_keeps_out_what_was_kept_out(docs: Path, where: Path, encoder: WordEncoder) -> None:
    write(docs / "draft.txt", "a draft")
    build([docs], where, encoder=encoder, exclude=["draft*"])
    remove([docs / "okapi.md"], where)
    build([docs], where, encoder=encoder, rebuild=True)
    with Index.open(where, encoder) as index:
        status = index.status()
    assert (status["files"], status["removed"]) == (2, [str(docs / "okapi.md")])
    assert status["patterns"] == {str(docs): {"exclude": ["draft*"]}}
    build([], where, encoder=encoder, rebuild=True, exclude=[])  # the same folders, and no pattern any more
    with Index.open(where, encoder) as index:
        assert (index.status()["files"], index.status()["patterns"]) == (3, {})
