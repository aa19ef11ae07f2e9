"""Quotes: whatever the model would like to write, what it closes stands in a passage; and everything else is free."""

import ctypes
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from rag_app.engines.quoting import QuoteMask, Vocabulary
from rag_app.marks import MARKS, PAIRS, Line
from rag_app.models import locate
from rag_app.quotes import QuoteCheck

OKAPI = "The okapi lives in the Ituri rainforest.\n\nIts  tongue is 45\tcentimetres long; it weighs 7,500 grams."
HOSTILE = [
    'He said "no", then “yes”, then «peut-être» and "".""',
    '"\'""“”"„“” ” " “',
    'a"b c"d e" f 5" pipe, 6"wide "x',
    '“ ” « » " \' `code` ``` " ```',
]
UNICODE = [
    "Das Ökosystem der Übergröße: „Straße“ — naïve café… 奥卡皮鹿生活在伊图里雨林。它的舌头长四十五厘米。",
    '🦒👩‍👩‍👧 e\u0301 ﬁ \u202etrick\u200b ארה"ב हिन्दी में लिखा ไทยแลนด์ عربي مُشَكَّل',
    "\x00\x01 \x85 \xa0 \u2028 \ud800 lone, \U0010fffd",
]


@pytest.fixture(scope="module")
def real() -> Vocabulary:
    """SmolLM2's 49,152 tokens, from the bundled file."""
    import llama_cpp

    llama = llama_cpp.Llama(str(locate()), vocab_only=True, verbose=False)
    vocab = llama_cpp.llama_model_get_vocab(llama.model)
    buffer = ctypes.create_string_buffer(512)
    lengths = [(i, llama_cpp.llama_token_to_piece(vocab, i, buffer, 512, 0, False)) for i in range(llama.n_vocab())]
    pieces = []
    for token, _ in lengths:
        length = llama_cpp.llama_token_to_piece(vocab, token, buffer, 512, 0, False)
        pieces.append(buffer.raw[: max(length, 0)])
    ends = [token for token in range(len(pieces)) if llama_cpp.llama_vocab_is_eog(vocab, token)]
    return Vocabulary(pieces, ends)


@pytest.fixture(scope="module")
def small() -> Vocabulary:
    """Every byte, a few longer tokens, and one end."""
    longer = ['"The', '",', '."', ' "', '","', "okapi", "The", "” “", "”.", " okapi", '" "The', "```", '"x', "\n", "é"]
    return Vocabulary(
        [*(bytes([b]) for b in range(256)), *(text.encode() for text in longer), b""], [256 + len(longer)]
    )


def quotes(text: str) -> tuple[list[str], bool]:
    """The closed quotes of a text, and whether one is left open; by regular expressions, unlike the mask."""
    closed, lines, place = [], "", Line()
    for character in text:
        lines += "\n" if place.fence else character
        place = place.after(character)
    pattern = "|".join(
        [
            r"(?P<inch>(?<![\w.,/])[0-9]{1,3}([.,/][0-9]{1,3})?[\"”](?=[\s.,;:!?)\]}]|\Z))",
            r"(?P<hebrew>(?<=[\u05d0-\u05ea])\"[\u05d0-\u05ea](?![\u05d0-\u05ea]))",
            *(f"{a}(?P<q{n}>[^{b}]*)(?P<end{n}>[{b}]|\\Z)" for n, (a, b) in enumerate(PAIRS.items())),
        ]
    )
    for match in re.finditer(pattern, lines):
        for n in range(len(PAIRS)):
            if match[f"q{n}"] is not None:
                if not match[f"end{n}"]:
                    return closed, True
                closed.append(match[f"q{n}"])
    return closed, False


def stands_in(quote: str, passages: Sequence[str]) -> bool:
    return bool(quote.strip()) and any(" ".join(quote.split()) in " ".join(p.split()) for p in passages)


def allowed(mask: QuoteMask, vocabulary: Vocabulary) -> set[bytes]:
    logits = np.zeros(len(vocabulary.pieces), np.float32)
    mask.apply(logits)
    return {vocabulary.pieces[token] for token in np.flatnonzero(np.isfinite(logits))}


def after(vocabulary: Vocabulary, passages: Sequence[str], text: str) -> QuoteMask:
    """A mask after a text, written byte by byte."""
    mask = QuoteMask(vocabulary, passages)
    for byte in text.encode():
        token = vocabulary.ids[bytes([byte])][0] if byte != 10 else vocabulary.pieces.index(b"\n")
        logits = np.zeros(len(vocabulary.pieces), np.float32)
        mask.apply(logits)
        assert np.isfinite(logits[token]), f"{chr(byte)!r} is not allowed in {text!r}"
        mask.accept(token)
    return mask


def walk(
    vocabulary: Vocabulary, passages: Sequence[str], seed: int, steps: int, eager: float
) -> tuple[list[int], bytes]:
    """A reply of random tokens, fond of quote marks as far as `eager` says."""
    random = np.random.default_rng(seed)
    mask = QuoteMask(vocabulary, passages)
    fond = np.array(
        [token for token, piece in enumerate(vocabulary.pieces) if any(m.encode() in piece for m in [*MARKS, "`"])]
        + [
            token
            for token, piece in enumerate(vocabulary.pieces)
            if piece[:2] in (b"\xe2\x80", b"\x80", b"\x9c", b"\x9d")
        ]
    )
    tokens = []
    for _ in range(steps):
        logits = random.normal(size=len(vocabulary.pieces)).astype(np.float32)
        logits[fond] += eager
        mask.apply(logits)
        token = int(logits.argmax())
        assert np.isfinite(logits[token])
        mask.accept(token)
        tokens.append(token)
    return tokens, b"".join(vocabulary.pieces[token] for token in tokens)


@pytest.mark.parametrize(
    "passages", [[OKAPI], HOSTILE, UNICODE, [OKAPI, *HOSTILE, *UNICODE], ["x"], ['"'], [" \n"], []]
)
@pytest.mark.parametrize("eager", [0.0, 1.0, 4.0])
def test_every_quote_of_a_random_reply_stands_in_a_passage(real: Vocabulary, passages: list[str], eager: float) -> None:
    for seed in range(2):
        tokens, written = walk(real, passages, seed, 100, eager)
        text = written.decode("utf-8", "replace")
        closed, is_open = quotes(text)
        for quote in closed:
            assert stands_in(quote, passages), (quote, text)
        assert not is_open or not set(tokens[-1:]) & set(real.ends.tolist()), text


@pytest.mark.parametrize("passages", [[OKAPI], HOSTILE, UNICODE, [OKAPI, *HOSTILE, *UNICODE]])
def test_every_quote_stands_in_a_passage_in_bytes(small: Vocabulary, passages: list[str]) -> None:
    """Where nearly each token is a byte, characters and marks are cut everywhere."""
    for seed in range(6):
        _, written = walk(small, passages, seed, 300, 0.3)
        text = written.decode("utf-8", "replace")
        for quote in quotes(text)[0]:
            assert stands_in(quote, passages), (quote, text)


@pytest.mark.parametrize("passages", [[OKAPI], HOSTILE, UNICODE, [OKAPI, *HOSTILE, *UNICODE], []])
def test_the_check_afterwards_finds_nothing_to_take_away(small: Vocabulary, passages: list[str]) -> None:
    for seed in range(8):
        text = walk(small, passages, seed, 400, 0.5)[1].decode("utf-8", "replace")
        check = QuoteCheck(passages)
        shown = check.feed(text)
        assert (shown, check.dropped) == (signs(text, shown), 0)


def signs(text: str, shown: str) -> str:
    """As much of the text as is shown, with the check's own signs for inches and abbreviations."""
    return "".join(b if b in "″״" and a in '"”' else a for a, b in zip(text, shown, strict=False))


def test_random_replies_do_quote(real: Vocabulary) -> None:
    """The walks above prove something."""
    found = [
        quotes(walk(real, [OKAPI, *UNICODE], seed, 200, 3.0)[1].decode("utf-8", "replace"))[0] for seed in range(3)
    ]
    assert sum(map(len, found)) > 20
    assert len({quote for closed in found for quote in closed}) > 5


def brute(vocabulary: Vocabulary, passages: Sequence[str], text: str) -> set[bytes]:
    """Tokens that may follow a text which stands in a straight quote, by trying each."""
    joined = ["".join(f" {' '.join(p.split())} ") for p in passages]
    words = [[m.span() for m in re.finditer(r"\w+(?:[.,:'’-]\w+)*", one)] for one in joined]
    so_far = text.rpartition('"')[2]

    def fits(quote: str, whole: bool) -> bool:
        for one, spans in zip(joined, words, strict=True):
            for found in re.finditer(f"(?={re.escape(quote)})", one):
                begin, end = found.start(), found.start() + len(quote)
                cut = [a < begin < b for a, b in spans] + [a < end < b for a, b in spans if whole]
                starts = re.compile(r"\w|(?<=\s)\S").match(one, begin)
                if starts and not any(cut):
                    return True
        return False

    good = set()
    for token, piece in enumerate(vocabulary.pieces):
        if token in vocabulary.ends or not piece.isascii() or not piece:
            continue
        quote, mark, rest = (so_far + piece.decode()).partition('"')
        if mark and quote and fits(quote, True) and '"' not in rest:
            good.add(piece)
        if not mark and fits(quote, False):
            good.add(piece)
    return good


@pytest.mark.parametrize("so_far", ["", "T", "The", "It", "The okapi", "long", "7,500", "in the Ituri rainforest"])
def test_as_exact_as_trying_each_token(real: Vocabulary, so_far: str) -> None:
    mask = after(real, [OKAPI], f'It says: "{so_far}')
    got = {piece for piece in allowed(mask, real) if piece.isascii() and piece.count(b'"') < 2}
    assert got == brute(real, [OKAPI], f'"{so_far}')


@pytest.mark.parametrize(
    ("text", "may", "may_not"),
    [
        ('"', [b"The", b"okapi"], [b'"', b",", b"x", b"", b"\n", b"k"]),
        ('"The', [b" okapi", b" ", b'"', b'",', b'","'], [b"okapi", b"s", b"", b"."]),
        ('"Th', [b"e"], [b'"', b'",']),  # words are not cut
        ('"7', [b","], [b'"', b'",']),  # nor numbers
        ('"7,500', [b'"', b" "], [b"0"]),
        ("“The", [b" okapi", "”.".encode()], [b'"', b"x", b""]),
        ("«The", [b" okapi", b"\xc2"], [b'"', "”.".encode()]),
        ("« The okapi ", [b"l", b"\xc2"], [b"\xe2"]),
        ('"The okapi" is', [b"x", b'"', b'"The', b""], [b'"x']),
        ("a pipe of 5", [b'"', b'",', b"x", b""], [b'"The', b'"x']),
        ('a pipe of 5"', [b" okapi", b".", b""], [b"T", b"x", b"The", b"*", b'"', b'"The', b' "', "é".encode()]),
        ('a pipe of 5" ', [b"x", b"\n"], [b'"', b' "', b'"The', "”.".encode()]),
        ('5" ', [b"5"], [b'"']),
        ('5" x 5', [b'"'], [b'"The']),
        ('a pipe of 5"\n', [b"x", b'"', b'"The'], [b'"x']),
        ("in 2020", [b'"', b'"The', b"x"], [b'",', b'".']),
        ("x5", [b'"The'], [b'",']),
        ("5.5", [b'",'], [b'"The']),
        ('in 2020"', [b"The"], [b" ", b"x", b"*"]),
        ("don", [b"'"], []),
        ("don't", [b"x", b"'", b""], []),
        ("`", [b'"', b"x", b""], [b'"x']),
        ("``a`", [b'"'], [b'"x']),
        ("so ```\n", [b'"'], [b'"x']),
        ("2020 ```\n", [b'"'], [b'"x']),
        ("``` `\n", [b'"'], [b'"x']),
        ("```py", [b'"'], [b'"x', b'",']),
        ("```\nprint(`", [b'"x'], []),
        ("> - ```py\na\n", [b'"x', b'"', b'",'], []),
        ("1. ```\na\n```", [b'"x', b'"'], []),
        ("```\na\n``` \n", [b'"'], [b'"x']),
        ("````\na\n```\n", [b'"x'], []),
        ("```\na\n``` b\n", [b'"x'], []),
        ('ארה"', ["ב".encode()[:1], b""], [b"x", b" ", b'"', "é".encode(), b"The"]),
        ('ארה"ב', [b" ", b'"The'], ["ב".encode()[:1]]),
        ("it says", ["「".encode()[:1]], ["」".encode()]),
        ("„The", [b'"', b'",', "”.".encode()], [b"x"]),
        ("»The", [b"\xc2"], [b'"']),
    ],
)
def test_what_may_follow(small: Vocabulary, text: str, may: list[bytes], may_not: list[bytes]) -> None:
    got = allowed(after(small, [OKAPI], text), small)
    assert set(may) <= got
    assert not set(may_not) & got


def test_white_space_of_a_passage_is_one_space(small: Vocabulary) -> None:
    got = allowed(after(small, [OKAPI], '"rainforest.'), small)
    assert {piece for piece in got if not piece.startswith(b'"')} == {b" ", b' "'}
    assert b"I" in allowed(after(small, [OKAPI], '"rainforest. '), small)


@pytest.mark.parametrize("passages", [[], [""], [" \n "], ['"']])
def test_with_nothing_to_quote_no_quote_is_opened(small: Vocabulary, passages: list[str]) -> None:
    got = allowed(after(small, passages, "so "), small)
    assert not {b'"', b' "', b'"The', b'",'} & got
    assert {b"x", b"", b"'"} <= got


def test_a_mark_within_a_passage_ends_the_quote(small: Vocabulary) -> None:
    passages = ['He said "no way" twice.']
    assert all(piece.startswith(b'"') for piece in allowed(after(small, passages, '"said '), small))
    assert b'"' in allowed(after(small, passages, "“said "), small)


def test_a_character_without_tokens_is_not_begun() -> None:
    tokens = [b"a", b"b", b" ", b'"', b"\xc3", b"\xa9", b"\xe5", b""]  # no tokens for the rest of 奥
    vocabulary = Vocabulary(tokens, [7])
    passages = ["a é 奥 b"]
    assert allowed(after(vocabulary, passages, '"a '), vocabulary) == {b"\xc3", b'"'}
    assert allowed(after(vocabulary, passages, '"a é '), vocabulary) == {b'"'}


def test_a_mark_that_no_token_closes_is_not_opened() -> None:
    vocabulary = Vocabulary([b"a", "“".encode(), b'"', b""], [3])
    assert allowed(QuoteMask(vocabulary, ["a"]), vocabulary) == {b"a", b'"', b""}


def test_something_is_always_left(small: Vocabulary) -> None:
    end = int(small.ends[0])
    mask = after(small, [OKAPI], '"The')
    logits = np.full(len(small.pieces), -np.inf, np.float32)
    logits[[end, 120]] = 1.0  # the end and an x, neither of which may stand there: the end is the lesser evil
    mask.apply(logits)
    assert np.flatnonzero(np.isfinite(logits)).tolist() == [end]
    logits = np.full(len(small.pieces), -np.inf, np.float32)
    logits[120] = 1.0
    mask.apply(logits)
    assert np.flatnonzero(np.isfinite(logits)).tolist() == [120]
    mask.accept(120)  # the quote is given up
    assert b"x" in allowed(mask, small)
    mask = after(small, [], "")
    logits = np.full(len(small.pieces), -np.inf, np.float32)
    logits[34] = 1.0  # another rule wants a quote mark and nothing else
    mask.apply(logits)
    assert np.isfinite(logits).any()


def test_two_tokens_of_the_same_bytes(small: Vocabulary) -> None:
    vocabulary = Vocabulary([*small.pieces, b"o"], small.ends.tolist())
    logits: Any = np.zeros(len(vocabulary.pieces), np.float32)
    after(vocabulary, [OKAPI], '"').apply(logits)
    assert np.isfinite(logits[[ord("o"), len(small.pieces)]]).all()
