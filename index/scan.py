"""Paths to the documents below them. Looks at names, types and sizes; reads no content but that of ignore files."""

import errno
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from index.errors import NoDocuments

IGNORE_FILES = (".gitignore", ".ragignore")  # in this order: within a folder, .ragignore has the last word
IGNORE_BYTES = 1_000_000
"""A longer ignore file is none that a person wrote; it is not read."""
VERSION_CONTROL = {"_darcs"}  # the others hide theirs, and a folder named CVS may well hold CVs


@dataclass(frozen=True)
class Root:
    """A file or folder to index, and what of it."""

    path: Path
    """Absolute, as it was named: symlinks are not resolved."""
    include: tuple[str, ...] = ()
    """Patterns as in .gitignore, relative to `path`. When there are any, a file must match one of them."""
    exclude: tuple[str, ...] = ()
    """Patterns of what is left out. They win over `include`."""
    ignore_files: bool = True
    """Whether .gitignore and .ragignore files in the folder count. Those above it never do."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(os.path.abspath(self.path)))  # noqa: PTH100  (resolve follows links)
        object.__setattr__(self, "include", tuple(self.include))
        object.__setattr__(self, "exclude", tuple(self.exclude))


@dataclass
class Scan:
    """What stands below the given roots."""

    roots: list[Root]
    files: dict[Path, os.stat_result] = field(default_factory=dict)
    """Documents of a known format, in order of their paths."""
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    """What was passed over, with the reason, in order of the paths. A folder stands for all that is in it."""
    unreadable: list[Path] = field(default_factory=list)
    """Folders that could not be looked through, or vanished meanwhile: what was below them is not known to be gone."""


def scan(roots: Iterable[Root], known: Callable[[Path], bool], leave_out: Path) -> Scan:
    """Finds the documents.

    Hidden files and folders are passed over, and so is all that is no regular file. No link is followed out of its
    root, and none to a folder: there are no loops. A link to a file in the root is taken where it is the only way to
    the file (its target is hidden, ignored or of another name), and once; beside its target it would only make the
    same passage answer twice.

    Args:
        roots: files and folders; folders are searched through. A file that is a root is taken whatever its format.
        known: whether the format of a file is known, by its path alone.
        leave_out: a folder that is never entered (the index itself).

    Raises:
        NoDocuments: a root does not exist, or a pattern of it is not valid.
    """
    result = Scan(list(roots))
    walk = _Walk(known, leave_out)
    for root in result.roots:
        walk.root(root)
    walk.take_links()
    result.files = {path: status for _, (path, status) in sorted(walk.found.items(), key=_by_parts)}
    # What one root passes over, another one may name.
    skipped = {path: why for path, why in walk.skipped.items() if path not in walk.found and path not in walk.walked}
    result.skipped = [(Path(path), why) for path, why in sorted(skipped.items(), key=_by_parts)]
    result.unreadable = [Path(path) for path in sorted(set(walk.unreadable))]
    return result


def _by_parts(item: tuple[str, object]) -> str:
    return item[0].replace("/", "\0")  # sorts strings as Path sorts paths, many times faster


class _Rule(NamedTuple):
    """One line of an ignore file."""

    matches: bool
    """False for a negation (`!pattern`)."""
    folders_only: bool
    by_name: bool
    """Matched with an entry's name; otherwise with its path from the folder of the ignore file."""
    regex: str


def _rule(line: str) -> _Rule | None:
    """git's reading of a line; None when it is blank, a comment or not valid, as git passes over it."""
    body = re.sub(r"(?<!\\) +$", "", line)
    if body.startswith("#"):
        return None
    negated, body = body.startswith("!"), body.removeprefix("!")
    folders_only, body = body.endswith("/"), body.removesuffix("/")
    regex = _regex(body) if body else None
    return None if regex is None else _Rule(not negated, folders_only, "/" not in body, regex)


def _regex(body: str) -> str | None:
    """What matches an entry itself, never one below it: the walk asks for each folder before it enters it."""
    try:
        source = _source(body)
        if source in (".", "/"):  # for "**/*" and the like: anything, or anything in a folder
            return f".*{source}"
        if source is None or body.endswith("/**"):
            return source
        return rf"(?:{source})\Z"
    except (ValueError, re.error):
        return None


def _source(body: str) -> str | None:
    from pathspec import GitIgnoreSpec  # on demand: most folders have no patterns

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # re foresees changes for sets such as [[a]
        patterns = list(GitIgnoreSpec.from_lines(["/" + body.removeprefix("/")]).patterns)
        if not patterns or patterns[0].regex is None:
            return None
        # Without names for its groups, since many stand in one expression below.
        return _steady(re.sub(r"\(\?P<\w+>", "(?:", patterns[0].regex.pattern.removeprefix("^")))


def _steady(source: str) -> str:
    """The same in time that does not explode: `*a*a*a*a*b` took 16 s for a name of 250 letters, and now 4 µs.

    What stands between two stars of a name is matched where it first can be, and never again further on: if the rest
    fits after a later place, it fits after the first.
    """
    star = "[^/]*"
    first, *pieces = source.split(star)
    last = pieces.pop() if pieces else None
    for piece in pieces:
        one_name = "/" not in piece.replace("[^/]", "")
        first += f"(?>[^/]*?{piece})" if one_name else star + piece
    return first if last is None else first + star + last


class _Patterns:
    """The lines of one ignore file, or of one option. As in git, the last one that matches decides."""

    def __init__(self, lines: Iterable[str], reason: str) -> None:
        self.reason = reason
        rules = [rule for rule in map(_rule, lines) if rule]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._rules = [(rule, re.compile(rule.regex, re.DOTALL)) for rule in reversed(rules)]
            self._any_name = re.compile("|".join(r.regex for r in rules if r.by_name) or r"(?!)", re.DOTALL)
            self._any_path = re.compile("|".join(r.regex for r in rules if not r.by_name) or r"(?!)", re.DOTALL)

    def verdict(self, name: str, path: str, folder: bool) -> bool | None:
        """True for a match, False for a negation, None when no line speaks of the entry (nearly always)."""
        if not self._any_name.match(name) and not self._any_path.match(path):
            return None
        for rule, regex in self._rules:
            if (folder or not rule.folders_only) and regex.match(name if rule.by_name else path):
                return rule.matches
        return None


class _Folder(NamedTuple):
    """A folder that is to be walked through."""

    path: str
    inside: str
    """From the root, with a slash at its end; empty for the root itself."""
    ignores: tuple[tuple[int, _Patterns], ...]
    """The ignore files that hold here, the nearest last, each with the length of `inside` of its own folder."""
    included: bool
    """Whether an include pattern matches the folder, and so all in it that no other one speaks of."""


class _Walk:
    """All of one scan. Its loop handles strings: a Path an entry would double its time."""

    def __init__(self, known: Callable[[Path], bool], leave_out: Path) -> None:
        self._known = known
        self._index = os.path.realpath(leave_out)
        self._index_stat = os.stat(self._index) if os.path.isdir(self._index) else None  # noqa: PTH112, PTH116
        self.found: dict[str, tuple[Path, os.stat_result]] = {}
        self.skipped: dict[str, str] = {}
        self.unreadable: list[str] = []
        self.walked: set[str] = set()  # the roots that could be
        self._real: set[str] = set()  # of what is found: two roots may name the same folder differently
        self._links: list[tuple[str, str]] = []

    def root(self, root: Root) -> None:
        """Takes a file, or walks through a folder."""
        self._root, self._base = root, str(root.path).rstrip("/")
        status = self._status(root.path)
        self._real_base = os.path.realpath(root.path).rstrip("/")
        if _lies_in(self._real_base, self._index):
            self.skipped[str(root.path)] = "the index itself"
        elif not _is_utf8(str(root.path)):
            self.skipped[str(root.path)] = "its name is not valid UTF-8: rename it"
        elif stat.S_ISREG(status.st_mode):
            self._take(str(root.path), self._real_base, status)
        elif stat.S_ISDIR(status.st_mode):
            self._through()
        else:
            self.skipped[str(root.path)] = "not a regular file"

    @staticmethod
    def _status(path: Path) -> os.stat_result:
        try:
            return path.stat()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise NoDocuments(f"'{path}' does not exist: check the path") from None
            raise NoDocuments(f"'{path}' cannot be opened ({error.strerror}): check its permissions") from None
        except ValueError:  # a NUL character
            raise NoDocuments(f"'{path!r}' does not exist: check the path") from None

    def _through(self) -> None:
        self._include = self._option(self._root.include, "matches no include pattern")
        self._exclude = self._option(self._root.exclude, "excluded")
        waiting = [_Folder(self._base, "", (), not self._include)]  # a stack: paths may be deeper than Python recurses
        while waiting:
            folder = waiting.pop()
            entries = self._entries(folder.path)
            if entries is None:
                continue
            if not folder.inside:
                self.walked.add(folder.path)
            if self._root.ignore_files:
                folder = self._with_ignore_files(folder, entries)
            for entry in entries:
                try:
                    below = self._entry(folder, entry)
                except OSError as error:
                    below = None
                    self._cannot(f"{folder.path}/{entry.name}", error)
                    if error.errno != errno.ENOENT:  # such as a folder that may be listed, but not searched
                        self.unreadable.append(folder.path or "/")
                if below:
                    waiting.append(below)

    def _option(self, patterns: tuple[str, ...], reason: str) -> _Patterns | None:
        patterns = tuple("/" + pattern[2:] if pattern.startswith("./") else pattern for pattern in patterns)
        for pattern in patterns:
            if _rule(pattern) is None:
                raise NoDocuments(f"'{pattern}' is no pattern: write it as in .gitignore, such as '*.md' or '/drafts/'")
        return _Patterns(patterns, reason) if patterns else None

    def _entries(self, folder: str) -> list[os.DirEntry[str]] | None:
        try:
            with os.scandir(folder or "/") as entries:
                return list(entries)
        except OSError as error:
            self._cannot(folder or "/", error)
            self.unreadable.append(folder or "/")
            return None

    def _cannot(self, path: str, error: OSError) -> None:
        self.skipped[path] = f"cannot be opened ({error.strerror})"

    def _with_ignore_files(self, folder: _Folder, entries: list[os.DirEntry[str]]) -> _Folder:
        here = {entry.name: entry for entry in entries if entry.name in IGNORE_FILES}
        found = [here[name] for name in IGNORE_FILES if name in here]
        return folder._replace(ignores=folder.ignores + tuple(self._ignore_files(folder, found))) if found else folder

    def _ignore_files(self, folder: _Folder, entries: list[os.DirEntry[str]]) -> Iterator[tuple[int, _Patterns]]:
        for entry in entries:
            try:
                # As in git, a link is not followed. A pipe would block.
                if not entry.is_file(follow_symlinks=False) or entry.stat().st_size > IGNORE_BYTES:
                    continue
                text = Path(entry.path).read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
            except OSError as error:
                self._cannot(entry.path, error)
                continue
            lines = (line.removesuffix("\r") for line in text.split("\n"))
            yield len(folder.inside), _Patterns(lines, f"ignored by {folder.inside}{entry.name}")

    def _entry(self, at: _Folder, entry: os.DirEntry[str]) -> _Folder | None:
        """Takes a file, or passes it over; a folder to walk through is returned."""
        name = entry.name
        path = f"{at.path}/{name}"
        link = entry.is_symlink()
        folder = not link and entry.is_dir(follow_symlinks=False)
        if folder and self._is_index(entry):
            return None
        if name[0] == ".":
            self.skipped[path] = "hidden"
        elif not _is_utf8(name):
            self.skipped[path] = "its name is not valid UTF-8: rename it"
        elif reason := self._ignored(at, name, folder):
            self.skipped[path] = reason
        elif folder:
            return self._below(at, name)
        elif self._include and not self._included(at, name, folder):
            self.skipped[path] = self._include.reason
        elif link:
            self._link(path)
        elif not entry.is_file(follow_symlinks=False):
            self.skipped[path] = "not a regular file"
        else:
            self._take_known(path, self._real_base + path[len(self._base) :], entry)
        return None

    def _is_index(self, entry: os.DirEntry[str]) -> bool:
        index = self._index_stat
        # An entry's inode costs nothing, but is another one where something is mounted: then the name has to do.
        if not index or (entry.inode() != index.st_ino and not self._index.endswith(f"/{entry.name}")):
            return False
        return os.path.samestat(os.stat(entry.path), index)  # noqa: PTH116

    def _ignored(self, at: _Folder, name: str, folder: bool) -> str | None:
        """Why an entry is left out by a pattern. The nearest ignore file that speaks of it decides."""
        if folder and name in VERSION_CONTROL:
            return "version control"
        if self._exclude and self._exclude.verdict(name, at.inside + name, folder):
            return self._exclude.reason
        for start, patterns in reversed(at.ignores):
            ignored = patterns.verdict(name, at.inside[start:] + name, folder)
            if ignored is not None:
                return patterns.reason if ignored else None
        return None

    def _included(self, at: _Folder, name: str, folder: bool) -> bool:
        verdict = self._include.verdict(name, at.inside + name, folder) if self._include else None
        return at.included if verdict is None else verdict

    def _below(self, at: _Folder, name: str) -> _Folder:
        return _Folder(f"{at.path}/{name}", f"{at.inside}{name}/", at.ignores, self._included(at, name, True))

    def _take_known(self, path: str, real: str, entry: os.DirEntry[str]) -> None:
        as_path = Path(path)
        if self._known(as_path):
            if real not in self._real:
                self._real.add(real)
                self.found[path] = as_path, entry.stat(follow_symlinks=False)
        else:
            self._unknown(as_path)

    def _unknown(self, path: Path) -> None:
        self.skipped[str(path)] = f"files of type '{path.suffix or path.name}' are not read"

    def _take(self, path: str, real: str, status: os.stat_result) -> None:
        if real not in self._real:
            self._real.add(real)
            self.found[path] = Path(path), status

    def _link(self, path: str) -> None:
        if os.path.isdir(path):  # noqa: PTH112
            self.skipped[path] = "a link to a folder"
            return
        real = os.path.realpath(path)
        if not _lies_in(real, self._real_base):
            self.skipped[path] = "a link that leads out of the folder"
        elif _lies_in(real, self._index):
            self.skipped[path] = "a link into the index"
        elif not os.path.exists(path):  # noqa: PTH110
            self.skipped[path] = "a link that leads nowhere"
        else:
            self._links.append((path, real))

    def take_links(self) -> None:
        """Takes the links that lead to nothing found so far, once all roots are walked."""
        for path, real in sorted(self._links):
            as_path = Path(path)
            try:
                status = os.stat(real, follow_symlinks=False)  # noqa: PTH116
            except OSError as error:
                self._cannot(path, error)
                continue
            if not stat.S_ISREG(status.st_mode):
                self.skipped[path] = "not a regular file"
            elif not self._known(as_path):
                self._unknown(as_path)
            elif real in self._real:
                self.skipped[path] = "a link to a file that is indexed already"
            else:
                self._take(path, real, status)


def _is_utf8(name: str) -> bool:
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
