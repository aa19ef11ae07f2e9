"""Quotes that cannot be invented: between quote marks only what stands in a passage may be written.

Knows tokens as bytes and passages as text; no engine, no prompt. Before each token the engine has its logits masked:

    mask = QuoteMask(vocabulary, passages)
    mask.apply(logits); token = choose(logits); mask.accept(token)

What a quote is, `rag_app.marks` says; `rag_app.quotes` checks by the same afterwards. A straight mark or ” after a
number of at most three digits is an inch mark where a blank, a stop or the end follows, and then no quote opens in that
line; a straight mark before the last letter of a Hebrew word belongs to it. Code between fences is left alone. A quote
is whole words of one passage, one at least, and no generation ends within one. The passages' runs of white space count
as one space, and are written as one; the rest is verbatim.

A suffix automaton would do the same work. The list of places where the quote may go on is as exact, and shorter to
write: it is cut down with every byte, and what the vocabulary can write at a place is looked up once.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rag_app.marks import AFTER_INCH, HEBREW, INCH, MARKS, NUMBER, PAIRS, TEXT, Line, kind

Ids = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

OPENING = {mark.encode(): tuple(close.encode() for close in closing) for mark, closing in PAIRS.items()}
CLOSING = sorted({close for closing in OPENING.values() for close in closing})
SPACED = ("«".encode(), "‹".encode())
"""French sets a space inside its marks."""

_ANY = frozenset(range(256))
_HEBREW_BYTE = 0xD7
"""First byte of Hebrew letters."""
FOLLOWS = {
    "inch": frozenset(map(ord, AFTER_INCH)),
    "abbreviation": frozenset([_HEBREW_BYTE]),
    "letter": frozenset(range(0x90, 0xAB)),
    "abbreviated": _ANY - {_HEBREW_BYTE},
}
"""Bytes that may follow an inch mark, the mark of an abbreviation, its last letter's first byte and its second."""
_LETTER = (  # of scripts that put spaces between words, vowel signs and accents included; not Thai, Chinese, Japanese
    "(?:(?![\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])"
    "[\\w\u0300-\u036f\u0591-\u05c7\u064b-\u0670\u0900-\u0dff])"
)
_WORD = re.compile(f"{_LETTER}+(?:[.,:'’-]{_LETTER}+)*")  # 7,500 and don't are one word each
_BEGIN = re.compile(rf"(?<!\S)(?=[^\s{''.join(sorted(MARKS))}]*[^\W_])\S|[^\W_]")  # not with the comma after a word
_BREAK = 10  # a line feed, which no normalised passage holds, lies between what may not be quoted in one


class Vocabulary:
    """The bytes of a model's tokens, ready to be searched. Built once per model; threads may share it."""

    def __init__(self, pieces: Sequence[bytes], ends: Collection[int]) -> None:
        """Takes the bytes of every token id, b"" for control tokens, and the ids that end a generation."""
        self.pieces = pieces
        self.ends = np.array(sorted(ends), np.int64)
        self.ids: dict[bytes, list[int]] = {}
        lengths: dict[bytes, set[int]] = defaultdict(set)
        for token, piece in enumerate(pieces):
            if piece and b"\n" not in piece and token not in ends:
                self.ids.setdefault(piece, []).append(token)
                lengths[piece[:2]].add(len(piece))
        self._lengths = {start: sorted(found) for start, found in lengths.items()}
        first = np.array([piece[0] if piece else -1 for piece in pieces], np.int64)
        self.unfit = {
            before: np.flatnonzero((first >= 0) & ~np.isin(first, sorted(bytes_))) for before, bytes_ in FOLLOWS.items()
        }
        marks = [mark.encode() for mark in MARKS]
        self.marked = [i for i, piece in enumerate(pieces) if any(mark in piece for mark in marks)]
        tails = tuple(mark[cut:] for mark in marks for cut in range(1, len(mark)))
        self.completing = [i for i, piece in enumerate(pieces) if piece.startswith(tails)]
        # Few tokens hold a mark or a part of one: only these are looked through for each.
        self._marked = [(i, piece) for i, piece in enumerate(pieces) if b'"' in piece or not piece.isascii()]
        self.closing = {(mark, cut): self._closing(mark, cut) for mark in CLOSING for cut in range(len(mark))}

    def writable(self, character: str) -> bool:
        """Whether there are tokens for it."""
        try:
            written = character.encode()
        except UnicodeEncodeError:  # half of a surrogate pair
            return False
        return written in self.ids or self.in_bytes(written)

    def in_bytes(self, text: bytes) -> bool:
        """Whether each byte is a token of its own, so that the text can be written from any byte on."""
        return all(text[i : i + 1] in self.ids for i in range(len(text)))

    def at(self, text: bytes, place: int) -> Iterator[tuple[int, list[int]]]:
        """Lengths and ids of the tokens that `text` goes on with at `place`."""
        for start in (text[place : place + 1], text[place : place + 2]):
            for length in self._lengths.get(start, ()):
                if found := self.ids.get(text[place : place + length]):
                    yield length, found

    def _closing(self, mark: bytes, cut: int) -> dict[bytes, list[tuple[int, bytes]]]:
        """Tokens that hold a closing mark from its byte `cut` on, or the beginning of it: what stands before -> (id,
        what follows)."""
        rest = mark[cut:]
        found: dict[bytes, list[tuple[int, bytes]]] = defaultdict(list)
        for token, piece in self._marked:
            if rest in piece and (not cut or piece.startswith(rest)):
                before, _, after = piece.partition(rest)
                found[before].append((token, after))
            for length in range(1, len(rest) if self.in_bytes(mark) else 0):
                if piece == rest[:length] or (not cut and piece.endswith(rest[:length])):
                    found[piece[: len(piece) - length]].append((token, b""))
        return dict(found)


class _State(NamedTuple):
    """Where the text stands."""

    partial: bytes = b""
    """The bytes of a character that is not complete."""
    before: str = ""
    """In plain text, the `kind` of what a mark would stand after, or what stands after one: a key of FOLLOWS."""
    line: Line = Line()
    """Where in its line, and whether in code."""
    inches: bool = False
    """Whether an inch mark stands in the line: none that opens a quote may come after it."""
    mark: bytes = b""
    """In a quote, the mark that opened it."""
    places: Ids = np.empty(0, np.int64)
    """In a quote, where in the passages it may go on."""
    empty: bool = True
    """In a quote, whether no letter or digit stands in it yet."""
    closable: bool = False
    """In a quote, whether it may end after its last complete character."""


class QuoteMask:
    """The mask of one reply."""

    def __init__(self, vocabulary: Vocabulary, passages: Sequence[str]) -> None:
        self._vocabulary = vocabulary
        self._state = _State()
        self._text, self._begins, self._inside, self._safe = _lay_out(vocabulary, passages)
        self._texts: dict[bytes, tuple[bytes, npt.NDArray[np.uint8]]] = {}
        self._opened: dict[bytes, _State | None] = {}
        self._banned: dict[tuple[Any, ...], Ids] = {}
        self._going_on: dict[tuple[bytes, int], list[int]] = {}
        self._first: dict[bytes, Ids] = {}
        self._ending: dict[tuple[bytes, int, bytes], list[int]] = {}

    def apply(self, logits: npt.NDArray[np.float32]) -> None:
        """Sets the logits, float32 of shape (n_vocab,), of the tokens that may not come next to -inf, in place.

        Where none would be left, those that end the generation stay, and where these are masked already, all do.
        """
        if not self._state.mark:
            forbidden = self._forbidden()
            kept = logits[forbidden]
            logits[forbidden] = -np.inf
            if not np.isfinite(logits).any():
                logits[forbidden] = kept
            return
        allowed = self._allowed()
        if not np.isfinite(logits[allowed]).any():
            allowed = self._vocabulary.ends
        if np.isfinite(logits[allowed]).any():
            kept = logits[allowed]
            logits.fill(-np.inf)
            logits[allowed] = kept

    def accept(self, token: int) -> None:
        """Goes on by the token that was chosen. One that may not stand there gives the quote up."""
        self._state = self._walk(self._state, self._vocabulary.pieces[token]) or _State()

    def _walk(self, state: _State, piece: bytes) -> _State | None:
        """The state after more bytes; None where they may not be written."""
        for byte in piece:
            after = self._step(state, byte)
            if after is None:
                return None
            state = after
        return state if self._can_go_on(state) else None

    def _can_go_on(self, state: _State) -> bool:
        """Whether a quote that stops within a character can be completed, byte by byte."""
        if not state.mark or not state.partial:
            return True
        return any(map(self._vocabulary.in_bytes, _begun(state))) or bool(self._safe[state.places].any())

    def _step(self, state: _State, byte: int) -> _State | None:
        continues = 0x80 <= byte < 0xC0 and state.partial
        if byte not in FOLLOWS.get(state.before, _ANY):
            return None
        character = (state.partial if continues else b"") + bytes([byte])
        complete = byte < 0x80 or (continues and len(character) == _length(character[0]))
        if state.mark:
            return self._quote(state, byte, character, bool(complete))
        if state.partial and not continues:  # no character at all
            state = self._plain(state, "\ufffd") or _State()
        if not complete:
            return state._replace(
                partial=character, before="letter" if state.before == "abbreviation" else state.before
            )
        return self._plain(state, character.decode("utf-8", "replace"))

    def _plain(self, state: _State, character: str) -> _State | None:
        line = state.line.after(character)
        if line.fence:
            return _State(line=line)
        if state.before == "letter":
            return _State(before="abbreviated", line=line, inches=state.inches)
        after = _State(before=kind(state.before, character), line=line, inches=state.inches and character != "\n")
        if character not in MARKS:
            return after
        if character in INCH and NUMBER.fullmatch(state.before):
            return after._replace(before="inch", inches=True)
        if character == '"' and state.before == HEBREW:
            return after._replace(before="abbreviation")
        return self._open(character.encode()) if character in PAIRS and not state.inches else None

    def _open(self, mark: bytes) -> _State | None:
        """A quote with nothing in it; None where there is nothing to quote or no token to close it."""
        if mark not in self._opened:
            _, text = self._in(mark)
            begins = self._begins & (text != _BREAK)
            if mark in SPACED:
                begins[:-1] |= (text[:-1] == ord(" ")) & begins[1:]
            closes = any(self._vocabulary.writable(close.decode()) for close in OPENING[mark])
            places = np.flatnonzero(begins)
            self._opened[mark] = _State(mark=mark, places=places) if closes and len(places) else None
        return self._opened[mark]

    def _quote(self, state: _State, byte: int, character: bytes, complete: bool) -> _State | None:
        if character in OPENING[state.mark]:
            return _State(line=TEXT) if state.closable else None
        _, text = self._in(state.mark)
        places = state.places[text[state.places] == byte] + 1
        if not complete:
            after = state._replace(partial=character, places=places)
            return after if len(places) or _begun(after) else None
        if not len(places) or byte == _BREAK:
            return None
        empty = state.empty and not character.decode("utf-8", "replace").isalnum()
        closable = not empty and not self._inside[places].all()
        return _State(mark=state.mark, places=places, empty=empty, closable=closable)

    def _in(self, mark: bytes) -> tuple[bytes, npt.NDArray[np.uint8]]:
        """The passages as what this mark opens may hold of them: without the marks that would close it."""
        if mark not in self._texts:
            text = self._text
            for close in OPENING[mark]:
                text = text.replace(close, bytes([_BREAK]) * len(close))
            self._texts[mark] = text, np.frombuffer(text, np.uint8)
        return self._texts[mark]

    def _forbidden(self) -> Ids:
        """Outside quotes, the tokens that open one and go on with what may not stand in it."""
        state = self._state
        key = state.partial, state.before, state.line, state.inches
        if key not in self._banned:
            vocabulary = self._vocabulary
            suspects = vocabulary.marked + (vocabulary.completing if state.partial else [])
            banned = [token for token in suspects if self._walk(state, vocabulary.pieces[token]) is None]
            unfit = vocabulary.unfit.get(state.before, ())
            self._banned[key] = np.array([*banned, *unfit], np.int64)
        return self._banned[key]

    def _allowed(self) -> Ids:
        """In a quote, the tokens that go on with it and those that end it."""
        state = self._state
        if state is not self._opened.get(state.mark):
            return self._going_on_or_ending(state)
        if state.mark not in self._first:  # the widest choice, and the same for every quote of the reply
            self._first[state.mark] = self._going_on_or_ending(state)
        return self._first[state.mark]

    def _going_on_or_ending(self, state: _State) -> Ids:
        ids = self._continuing(state)
        for close in OPENING[state.mark]:
            ids += self._closing(state, close, 0)
            if state.partial and close.startswith(state.partial):
                ids += self._closing(state, close, len(state.partial))
        return np.unique(np.array(ids, np.int64))

    def _continuing(self, state: _State) -> list[int]:
        ids: list[int] = []
        text, _ = self._in(state.mark)
        for place in state.places.tolist():
            found = self._going_on.get((state.mark, place))
            if found is None:
                tokens = self._vocabulary.at(text, place)
                found = [one for length, same in tokens if self._safe[place + length] for one in same]
                self._going_on[state.mark, place] = found
            ids += found
        return ids

    def _closing(self, state: _State, close: bytes, cut: int) -> list[int]:
        """Tokens that hold the closing mark, of which `cut` bytes are written."""
        _, text = self._in(state.mark)
        comes_next = set(text[state.places].tolist())
        ids: list[int] = []
        for before in self._vocabulary.closing[close, cut]:
            if before and before[0] not in comes_next:
                continue
            there = self._walk(state, before) if before else state
            if there and there.closable and (cut or not there.partial):
                ids += self._well_ended(close, cut, before)
        return ids

    def _well_ended(self, close: bytes, cut: int, before: bytes) -> list[int]:
        """Those of the tokens that after the mark go on with what may stand outside a quote."""
        key = close, cut, before
        if key not in self._ending:
            found = self._vocabulary.closing[close, cut][before]
            self._ending[key] = [token for token, after in found if self._walk(_State(line=TEXT), after) is not None]
        return self._ending[key]


def _lay_out(vocabulary: Vocabulary, passages: Sequence[str]) -> tuple[bytes, Flags, Flags, Flags]:
    """The passages in one text, with breaks between them and for what no token can write; and for each of its bytes,
    whether a quote may begin there, whether a word goes on, and whether the tokens can write the rest of the
    character."""
    joined = "\n".join(f" {' '.join(passage.split())} " for passage in passages) + "\n"
    unwritable = [character for character in set(joined) if character != "\n" and not vocabulary.writable(character)]
    joined = joined.translate(dict.fromkeys(map(ord, unwritable), "\n"))
    inside = np.zeros(len(joined), np.bool_)
    for word in _WORD.finditer(joined):
        inside[word.start() + 1 : word.end()] = True
    begins = np.zeros(len(joined), np.bool_)
    begins[[match.start() for match in _BEGIN.finditer(joined)]] = True
    points = np.frombuffer(joined.encode("utf-32-le"), np.uint32)
    in_pieces = [ord(one) for one in set(joined) if not vocabulary.in_bytes(one.encode())]
    text = joined.encode()
    first = np.frombuffer(text, np.uint8) & 0xC0 != 0x80
    lengths = np.diff(np.flatnonzero(np.append(first, True)))
    safe = np.repeat(~np.isin(points, np.array(in_pieces, np.uint32)), lengths) | first
    goes_on = np.repeat(inside, lengths)
    return text, np.repeat(begins, lengths) & first & ~goes_on, goes_on, safe


def _begun(state: _State) -> list[bytes]:
    """The closing marks of which the first bytes stand at the end of a quote that may end."""
    return [close for close in OPENING[state.mark] if state.closable and close.startswith(state.partial)]


def _length(first: int) -> int:
    """Bytes of the UTF-8 character that this byte begins."""
    return 2 if first < 0xE0 else 3 if first < 0xF0 else 4
