"""What a scan finds, passes over and never touches: real folders, and git itself as the judge of ignore files."""

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from index.errors import NoDocuments
from index.scan import Root, Scan, scan

NOWHERE = Path("/nonexistent-index")
_events: list[tuple[str, str]] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _events is not None and event in ("os.scandir", "open"):
        _events.append((event, os.fsdecode(arguments[0]) if isinstance(arguments[0], (str, bytes)) else ""))


sys.addaudithook(_hook)


@contextmanager
def watched() -> Iterator[list[tuple[str, str]]]:
    """Every folder listed and every file opened meanwhile, as Python itself reports it."""
    global _events
    _events = []
    try:
        yield _events
    finally:
        _events = None


def known(path: Path) -> bool:
    return path.suffix.lower() in (".md", ".txt")


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def tree(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name.endswith("/"):
            (folder / name).mkdir(parents=True)
        else:
            write(folder / name)
    return folder


def look(*roots: Path | Root, leave_out: Path = NOWHERE, known: Callable[[Path], bool] = known) -> Scan:
    return scan([root if isinstance(root, Root) else Root(root) for root in roots], known, leave_out)


def names(found: Scan, folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in found.files]


def reasons(found: Scan, folder: Path) -> dict[str, str]:
    assert len({path for path, _ in found.skipped}) == len(found.skipped)
    return {str(path.relative_to(folder)): reason for path, reason in found.skipped}


# --- what is found


def test_documents_come_in_the_order_of_their_paths_with_what_the_system_says_of_them(tmp_path: Path) -> None:
    tree(
        tmp_path, "b.md", "a/z.txt", "a.md", "a/b/c.md", "a-b/x.md", "a b.md", "ä.md", "B.TXT", "日本/🦓.md", "x\ny.md"
    )
    found = look(tmp_path)
    assert list(found.files) == sorted(found.files)
    assert len(found.files) == 10
    assert found.skipped == found.unreadable == []
    for path, status in found.files.items():
        assert (status.st_size, status.st_mtime_ns) == (1, path.stat().st_mtime_ns)


def test_what_is_passed_over_has_a_reason(tmp_path: Path) -> None:
    docs = tree(tmp_path / "docs", "a.md", "b.csv", "README", ".hidden.md", ".git/x.md", "_darcs/x.md", "CVS/resume.md")
    os.mkfifo(docs / "pipe.md")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(docs / "socket.md"))
    with watched() as events:
        found = look(docs)
    assert names(found, docs) == ["CVS/resume.md", "a.md"]
    assert reasons(found, docs) == {
        ".git": "hidden",
        ".hidden.md": "hidden",
        "README": "files of type 'README' are not read",
        "_darcs": "version control",
        "b.csv": "files of type '.csv' are not read",
        "pipe.md": "not a regular file",
        "socket.md": "not a regular file",
    }
    assert [path for path, _ in found.skipped] == sorted(path for path, _ in found.skipped)
    assert not [path for event, path in events if event == "open"]


def test_an_ignore_file_that_is_a_pipe_a_folder_or_a_link_is_never_opened(tmp_path: Path) -> None:
    for name in ("pipe", "folder", "link"):
        tree(tmp_path / name, "a.md")
    os.mkfifo(tmp_path / "pipe" / ".gitignore")
    (tmp_path / "folder" / ".gitignore").mkdir()
    write(tmp_path / "patterns.txt", "*.md")
    (tmp_path / "link" / ".gitignore").symlink_to(tmp_path / "patterns.txt")
    with watched() as events:
        assert len(look(tmp_path).files) == 4
    assert not [path for event, path in events if event == "open"]


@pytest.mark.parametrize("name", [b"caf\xe9.md", b"caf\xe9.csv", b"\xff/inside.md"])
def test_names_that_are_not_utf8_are_passed_over(tmp_path: Path, name: bytes) -> None:
    tree(tmp_path, "a.md")
    path = os.path.join(os.fsencode(tmp_path), name)  # noqa: PTH118  (pathlib takes no bytes)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        with open(path, "wb"):  # noqa: PTH123
            pass
    except OSError:
        pytest.skip("this file system takes no such name")
    found = look(tmp_path)
    assert names(found, tmp_path) == ["a.md"]
    assert [reason for _, reason in found.skipped] == ["its name is not valid UTF-8: rename it"]


def test_hostile_names_are_just_names(tmp_path: Path) -> None:
    hostile = [
        "-rf.md",
        "*.md",
        "[a].md",
        "!x.md",
        "#y.md",
        " .md",
        "a\\b.md",
        "\x1b[31m.md",
        "%00.md",
        "$(id).md",
        "~.md",
    ]
    tree(tmp_path, *hostile)
    write(tmp_path / ".gitignore", "\\#y.md\n\\!x.md\n\\[a].md\n")
    assert set(names(look(tmp_path), tmp_path)) == set(hostile) - {"#y.md", "!x.md", "[a].md"}


# --- roots


def test_a_file_named_as_a_root_is_taken_whatever_its_format_and_patterns(tmp_path: Path) -> None:
    docs = tree(tmp_path / "docs", "a.md", "table.csv", ".notes")
    write(docs / ".gitignore", "*")
    roots = [Root(docs / name, include=("*.pdf",), exclude=("*",)) for name in ("table.csv", ".notes")]
    found = look(Root(docs, ignore_files=False), *roots)
    assert names(found, docs) == [".notes", "a.md", "table.csv"]
    assert reasons(found, docs) == {".gitignore": "hidden"}


def test_overlapping_roots_give_each_file_once(tmp_path: Path) -> None:
    docs = tree(tmp_path / "docs", "a.md", "deep/b.md", "deep/er/c.md", ".dark/d.md")
    (tmp_path / "link").symlink_to(docs)
    found = look(docs, docs / "deep", docs / "deep" / "er" / "c.md", docs / ".dark", tmp_path / "link", docs)
    assert names(found, docs) == [".dark/d.md", "a.md", "deep/b.md", "deep/er/c.md"]
    (tmp_path / "link").unlink()
    assert look(docs, docs / ".dark").skipped == []  # .dark is hidden from one root, and another root itself
    (tmp_path / "link").symlink_to(docs)
    assert look(tmp_path / "link").files.keys() == {
        tmp_path / "link" / name for name in ("a.md", "deep/b.md", "deep/er/c.md")
    }


def test_a_root_is_absolute_and_keeps_its_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path / "docs", "a.md")
    (tmp_path / "link").symlink_to("docs")
    monkeypatch.chdir(tmp_path)
    root = Root(Path("docs/../link"), include=["*.md"])  # type: ignore[arg-type]
    assert (root.path, root.include) == (tmp_path / "link", ("*.md",))
    assert list(look(root).files) == [tmp_path / "link" / "a.md"]
    assert hash(root) == hash(Root(tmp_path / "link", ("*.md",)))


@pytest.mark.parametrize("name", ["missing", "a.md/below", "circle", "nul\0", "long" * 1000])
def test_a_root_that_does_not_exist_is_refused_by_name(tmp_path: Path, name: str) -> None:
    tree(tmp_path, "a.md")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(NoDocuments, match=r"does not exist: check the path|File name too long") as raised:
        look(tmp_path, tmp_path / name)
    assert "\n" not in str(raised.value) and "\0" not in str(raised.value)


def test_a_root_that_is_no_file_and_no_folder_is_passed_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    found = look(tmp_path / "pipe", Path("/dev/null"))
    assert found.files == {}
    assert [reason for _, reason in found.skipped] == ["not a regular file"] * 2


def test_the_index_is_never_entered(tmp_path: Path) -> None:
    docs = tree(tmp_path / "docs", "a.md", "index/b.md", "deep/index/c.md", ".rag/index/d.md")
    (tmp_path / "link").symlink_to(docs)
    for index in (docs / "index", tmp_path / "link" / "index", docs / "deep" / ".." / "index"):
        with watched() as events:
            found = look(docs, leave_out=index)
        assert names(found, docs) == ["a.md", "deep/index/c.md"]
        assert reasons(found, docs) == {".rag": "hidden"}
        assert ("os.scandir", str(docs / "index")) not in events
    assert look(docs, docs / "index", docs / "index" / "b.md", leave_out=docs / "index").files.keys() == {
        docs / "a.md",
        docs / "deep" / "index" / "c.md",
    }
    assert (
        look(docs, docs / ".rag", leave_out=docs / ".rag" / "index").files.keys().isdisjoint([docs / ".rag/index/d.md"])
    )


# --- links


def test_links_never_lead_out_nor_into_folders(tmp_path: Path) -> None:
    tree(tmp_path, "outside/secret.md", "docs-too/secret.md")
    docs = tree(tmp_path / "docs", "a.md", "deep/b.md")
    for name, target in {
        "out.md": tmp_path / "outside" / "secret.md",
        "sibling.md": Path("../docs-too/secret.md"),  # its path begins with that of the root
        "twice.md": Path("out.md"),
        "out": tmp_path / "outside",
        "up": docs,
        "deep/up": Path(".."),
        "nowhere.md": Path("missing.md"),
        "circle.md": Path("circle.md"),
        "null.md": Path("/dev/null"),
    }.items():
        (docs / name).symlink_to(target)
    found = look(docs)
    assert names(found, docs) == ["a.md", "deep/b.md"]
    assert reasons(found, docs) == {
        "circle.md": "a link that leads nowhere",
        "deep/up": "a link to a folder",
        "nowhere.md": "a link that leads nowhere",
        "null.md": "a link that leads out of the folder",
        "out": "a link to a folder",
        "out.md": "a link that leads out of the folder",
        "sibling.md": "a link that leads out of the folder",
        "twice.md": "a link that leads out of the folder",
        "up": "a link to a folder",
    }


def test_a_link_is_taken_where_it_is_the_only_way_and_once(tmp_path: Path) -> None:
    """As Kubernetes mounts a ConfigMap: every file is a link into a hidden folder."""
    docs = tree(tmp_path, "a.md", "..data/b.md", "c.data")
    for name, target in {
        "again.md": "a.md",
        "0.md": "a.md",
        "b.md": "..data/b.md",
        "b-too.md": "b.md",
        "c.md": "c.data",
        "d.csv": "c.data",
    }.items():
        (docs / name).symlink_to(target)
    found = look(docs)
    assert names(found, docs) == ["a.md", "b-too.md", "c.md"]
    assert not found.files[docs / "b-too.md"].st_mode & 0o20000  # that of the target
    already = "a link to a file that is indexed already"
    assert reasons(found, docs) == {
        "..data": "hidden",
        "0.md": already,
        "again.md": already,
        "b.md": already,
        "c.data": "files of type '.data' are not read",
        "d.csv": "files of type '.csv' are not read",
    }


def test_a_link_into_the_index_or_to_a_pipe_is_not_taken(tmp_path: Path) -> None:
    docs = tree(tmp_path, "a.md", "index/b.md")
    os.mkfifo(docs / ".pipe")
    (docs / "b.md").symlink_to("index/b.md")
    (docs / "pipe.md").symlink_to(".pipe")
    found = look(docs, leave_out=docs / "index")
    assert names(found, docs) == ["a.md"]
    assert reasons(found, docs) == {
        ".pipe": "hidden",
        "b.md": "a link into the index",
        "pipe.md": "not a regular file",
    }


# --- patterns


def test_include_narrows_and_exclude_wins(tmp_path: Path) -> None:
    docs = tree(tmp_path, "a.md", "b.txt", "guide/c.md", "guide/d.txt", "guide/old/e.md", "x/guide/f.txt", "t.csv")

    def found(*include: str, exclude: tuple[str, ...] = ()) -> list[str]:
        return names(look(Root(docs, include, exclude)), docs)

    assert found("*.md") == ["a.md", "guide/c.md", "guide/old/e.md"]
    assert found("/guide/") == ["guide/c.md", "guide/d.txt", "guide/old/e.md"]
    assert found("guide/") == ["guide/c.md", "guide/d.txt", "guide/old/e.md", "x/guide/f.txt"]
    assert found("guide/*.md") == ["guide/c.md"]
    assert found("guide/**/*.md", "b.*") == ["b.txt", "guide/c.md", "guide/old/e.md"]
    assert found("/guide/", "!old/") == ["guide/c.md", "guide/d.txt"]
    assert found("./guide") == found("/guide/")
    assert found("*.csv") == []  # only narrows
    assert found(exclude=("guide",)) == ["a.md", "b.txt"]
    assert found(exclude=("*.md", "!c.md")) == ["b.txt", "guide/c.md", "guide/d.txt", "x/guide/f.txt"]
    assert found("*.md", exclude=("/guide/",)) == ["a.md"]
    assert found("*.md", exclude=("*",)) == []
    assert reasons(look(Root(docs, ("*.md",), ("/guide/",))), docs) == {
        "b.txt": "matches no include pattern",
        "guide": "excluded",
        "t.csv": "matches no include pattern",
        "x/guide/f.txt": "matches no include pattern",
    }


@pytest.mark.parametrize("pattern", ["", "   ", "/", "!", "#comment", "[z-a].md", "a[.md"])
@pytest.mark.parametrize("option", ["include", "exclude"])
def test_an_option_that_is_no_pattern_is_refused(tmp_path: Path, pattern: str, option: str) -> None:
    with pytest.raises(NoDocuments, match=r"is no pattern: write it as in \.gitignore"):
        look(Root(tree(tmp_path, "a.md"), **{option: ("*.md", pattern)}))


def test_ignore_files_say_why_and_ragignore_has_the_last_word_in_its_folder(tmp_path: Path) -> None:
    docs = tree(tmp_path / "docs", "a.md", "b.md", "build/c.md", "deep/a.md", "deep/d.md", "deep/e.md")
    write(tmp_path / ".gitignore", "*")
    write(docs / ".gitignore", "build/\na.md\n")
    write(docs / ".ragignore", "!build/\nb.md\n")
    write(docs / "deep" / ".gitignore", "!a.md\r\nd.md\r\n")
    found = look(docs)
    assert names(found, docs) == ["build/c.md", "deep/a.md", "deep/e.md"]
    assert reasons(found, docs) == {
        ".gitignore": "hidden",
        ".ragignore": "hidden",
        "a.md": "ignored by .gitignore",
        "b.md": "ignored by .ragignore",
        "deep/.gitignore": "hidden",
        "deep/d.md": "ignored by deep/.gitignore",
    }
    assert len(look(Root(docs, ignore_files=False)).files) == 6


def test_ignored_folders_are_never_entered(tmp_path: Path) -> None:
    docs = tree(tmp_path, "a.md", "node_modules/x/y.md", "deep/node_modules/z.md", "out/b.md", ".venv/c.md")
    write(docs / ".gitignore", "node_modules/\n")
    with watched() as events:
        found = look(Root(docs, exclude=("/out",)))
    assert names(found, docs) == ["a.md"]
    assert {path for event, path in events if event == "os.scandir"} == {str(docs), str(docs / "deep")}


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfa.md",
        b"a.md\r\n",
        b"\n\n\ra.md\na.md",
        b"[\n[z-a]\n***\\\na.md",
        b"\xff\xfe\0\na.md",
        b"a.md  \n",
        b"/a.md",
    ],
)
def test_strange_ignore_files_do_not_stop_a_scan(tmp_path: Path, content: bytes) -> None:
    (tree(tmp_path, "a.md", "b.md") / ".gitignore").write_bytes(content)
    assert names(look(tmp_path), tmp_path) == ["b.md"]


def test_a_pattern_of_many_stars_takes_no_time(tmp_path: Path) -> None:
    """Naively, this takes longer than the universe has existed."""
    docs = tree(tmp_path, "a" * 200 + ".md", "b" + "a" * 200 + "b.md")
    write(docs / ".gitignore", "*a" * 60 + "*b.md\n" + "[ab]*?" * 30 + "z\n")
    assert names(look(docs), docs) == ["a" * 200 + ".md"]


def test_an_ignore_file_that_no_person_wrote_is_not_read(tmp_path: Path) -> None:
    (tree(tmp_path, "a.md") / ".gitignore").write_bytes(b"a.md\n" * 300_000)
    assert names(look(tmp_path), tmp_path) == ["a.md"]


# Not "a**": git strips the literal beginning before it compares, and so reads a**/b as a and **/b.
PARTS = [
    "*a*b*",
    "?*.*",
    "*[ab]*?",
    "a",
    "b",
    "ab",
    "a.md",
    "b.txt",
    "*",
    "**",
    "a*",
    "*.md",
    "?",
    "[ab]",
    "[!a]",
    "[^b]*",
    "*b*",
    "*.*",
    "\\a",
]


def _pattern(rng: random.Random) -> str:
    body = "/".join(rng.choice(PARTS) for _ in range(rng.choice([1, 1, 1, 2, 2, 3])))
    return rng.choice(["", "", "", "!"]) + rng.choice(["", "", "/"]) + body + rng.choice(["", "", "", "/", "/**", " "])


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
@pytest.mark.parametrize("seed", range(60))
def test_git_itself_agrees_on_ignore_files(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    folders = [tmp_path]
    for _ in range(12):
        folders.append(rng.choice(folders) / rng.choice(["a", "b", "ab", "c"]))
    for folder in folders:
        folder.mkdir(exist_ok=True)
    for folder in folders:
        tree(
            folder,
            *(name for name in ("a.md", "b.txt", "ab.md", "b") if rng.random() < 0.7 and not (folder / name).exists()),
        )
    lines = {}
    for folder in {tmp_path, *rng.sample(folders, 3)}:
        lines[folder] = [_pattern(rng) for _ in range(rng.randint(1, 5))]
        write(folder / ".gitignore", "\n".join(lines[folder]))
    git = ["git", "-c", "core.excludesFile=", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    listed = [*git, "ls-files", "-z", "--others", "--exclude-per-directory=.gitignore"]
    theirs = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0")
    ours = names(look(tmp_path, known=lambda _: True), tmp_path)
    assert set(ours) == {name for name in theirs if name and not name.endswith(".gitignore")}, lines


# --- what is in the way


def test_a_path_too_long_for_the_system_is_passed_over(tmp_path: Path) -> None:
    tree(tmp_path, "a.md")
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=here)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    found = look(tmp_path)
    assert names(found, tmp_path) == ["a.md"]
    assert [reason for _, reason in found.skipped] == ["cannot be opened (File name too long)"]
    assert found.unreadable == [found.skipped[0][0]]


def test_folders_deeper_than_python_recurses(tmp_path: Path) -> None:
    deep = Path(str(tmp_path) + "/d" * 1500)
    try:
        subprocess.run(["mkdir", "-p", str(deep)], check=True)
        (deep / "a.md").touch()
        assert list(look(tmp_path).files) == [deep / "a.md"]
    finally:
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


def test_a_folder_or_file_that_vanishes_meanwhile(tmp_path: Path) -> None:
    tree(tmp_path, "a.md", "gone/b.md", "kept/c.md")

    def removes(path: Path) -> bool:
        shutil.rmtree(tmp_path / "gone", ignore_errors=True)
        return known(path)

    found = look(tmp_path, known=removes)
    assert names(found, tmp_path) == ["a.md", "kept/c.md"]
    assert found.unreadable == [tmp_path / "gone"]
    assert reasons(found, tmp_path) == {"gone": "cannot be opened (No such file or directory)"}

    def removes_itself(path: Path) -> bool:
        path.unlink()
        return True

    found = look(tmp_path, known=removes_itself)
    assert (found.files, found.unreadable) == ({}, [])
    assert set(reasons(found, tmp_path).values()) == {"cannot be opened (No such file or directory)"}


def test_a_root_that_vanishes_meanwhile_is_unreadable(tmp_path: Path) -> None:
    first, second = tree(tmp_path / "1", "a.md"), tree(tmp_path / "2", "b.md")

    def swaps(path: Path) -> bool:
        shutil.rmtree(second / "sub", ignore_errors=True)
        return True

    tree(second, "sub/c.md", "z.md")
    found = look(second, first, known=swaps)
    assert found.unreadable == [second / "sub"]
    assert len(found.files) == 3


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder for a user who may not read everything, whoever runs the tests."""
    folder, user = Path(tempfile.mkdtemp()), os.geteuid()
    if user == 0:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    try:
        yield folder
    finally:
        os.seteuid(user)
        shutil.rmtree(folder)


def test_folders_without_permission(nobody: Path) -> None:
    tree(nobody, "a.md", "locked/b.md", "listed/c.md", "listed/sub/d.md", "secret.md", "e/f.md")
    write(nobody / "e" / ".gitignore", "f.md").chmod(0)
    (nobody / "locked").chmod(0)
    (nobody / "listed").chmod(0o400)  # its names can be read, and nothing else
    (nobody / "secret.md").chmod(0)
    found = look(nobody)
    (nobody / "locked").chmod(0o700)
    (nobody / "listed").chmod(0o700)
    assert names(found, nobody) == ["a.md", "e/f.md", "secret.md"]  # whether a file opens, the build will see
    denied = "cannot be opened (Permission denied)"
    assert reasons(found, nobody) == {
        "e/.gitignore": "hidden",
        "listed/c.md": denied,
        "listed/sub": denied,
        "locked": denied,
    }
    assert found.unreadable == [nobody / "listed", nobody / "listed" / "sub", nobody / "locked"]
    (nobody / "locked").chmod(0)
    assert look(nobody / "locked").unreadable == [nobody / "locked"]
    with pytest.raises(NoDocuments, match=r"cannot be opened \(Permission denied\): check its permissions"):
        look(nobody / "locked" / "b.md")
    (nobody / "locked").chmod(0o700)
