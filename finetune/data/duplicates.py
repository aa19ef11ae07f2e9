"""Examples that say the same twice, and texts that are nearly equal. Knows no files.

Two examples are the same when question, answer and passages are: the question word for word, but for case, spaces and
punctuation, since one telling word makes it another ("capital of France", "capital of Spain"); the answer and each
passage, at its place, but for a share of their runs of five words. So the same question of other passages stays, and
the same passages in another order.
"""

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from finetune.data.report import Report
from finetune.example import PARTS, Example

Hashes = NDArray[np.uint64]

THRESHOLD = 0.8
"""Jaccard similarity of the sets of five-word runs from which two texts are nearly equal."""
RUN = 5
"""Words."""
LONG_QUESTION = 12
"""Words from which on small words do not tell questions apart; in "hepatitis A" they do."""
SMALL = frozenset({"a", "an", "the", "please"})
BANDS, ROWS = 16, 4
"""Of a MinHash signature: of texts at the threshold 1 - (1 - 0.8^4)^16 = 99.98% meet in some band."""
MOST_MET = 20
"""Texts that are looked at in a band, the latest ones, and so the bound on the work that boilerplate can cause."""
MOST_COMPARED = 8
"""Texts, likest first, that are compared word for word."""
_EAST = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_EAST}]|[^\s.,;:!?…\"'“”‘’«»()\[\]{{}}{_EAST}]+")
"""A word; in scripts without spaces, a letter."""
_RANDOM = np.random.Generator(np.random.PCG64(0))
_FACTORS: Hashes = _RANDOM.integers(0, 1 << 63, BANDS * ROWS, np.uint64) * np.uint64(2) + np.uint64(1)  # odd: no loss
_STEP = np.uint64(0x9E3779B97F4A7C15)


def distinct(examples: Sequence[Example], report: Report) -> list[Example]:
    """The examples without those that say the same as another, in their order.

    Of several, the first stays; but one to test or validate on goes before one to train on.
    """
    order = sorted(range(len(examples)), key=lambda place: -PARTS.index(examples[place].part))  # stable
    alike: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for place in order:
        alike[_key(examples[place])].append(place)
    dropped: dict[int, int] = {}
    for places in alike.values():
        if len(places) > 1:
            dropped |= _repeated(examples, places)
    report.duplicates += [(examples[place].origin, examples[dropped[place]].origin) for place in sorted(dropped)]
    return [example for place, example in enumerate(examples) if place not in dropped]


def near_pairs(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of places of nearly equal texts, so many that those who follow them from pair to pair find every group."""
    first: dict[str, int] = {}
    index, pairs = Lookalikes(), list[tuple[int, int]]()
    for place, text in enumerate(texts):
        if (same := first.setdefault(text, place)) != place:
            pairs.append((same, place))
            continue
        signature = _signature(text)
        pairs += [(other, place) for other in index.like(signature) if similarity(texts[other], text) >= THRESHOLD]
        index.add(place, signature)
    return pairs


def similarity(one: str, other: str) -> float:
    """Jaccard similarity of two texts' runs of five words, 0 to 1; of shorter texts, whether they are equal."""
    if one == other:
        return 1.0
    a, b = _runs(one), _runs(other)
    same = len(np.intersect1d(a, b, assume_unique=True))
    return same / (len(a) + len(b) - same)


def words(text: str) -> list[str]:
    """The words of a text, without case and punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


class Lookalikes:
    """Texts by their MinHash signatures (Broder 1997), found again by bands of them (locality-sensitive hashing)."""

    def __init__(self) -> None:
        self._bands: list[dict[bytes, list[int]]] = [defaultdict(list) for _ in range(BANDS)]
        self._signatures: dict[int, Hashes] = {}

    def add(self, name: int, signature: Hashes) -> None:
        """Adds a text under a number."""
        self._signatures[name] = signature
        for band, key in zip(self._bands, _bands(signature), strict=True):
            band[key].append(name)

    def like(self, signature: Hashes) -> list[int]:
        """The numbers of texts that may be nearly equal, likest first."""
        met = {
            name for band, key in zip(self._bands, _bands(signature), strict=True)
            for name in band.get(key, ())[-MOST_MET:]
        }  # fmt: skip
        shares = {name: float(np.mean(self._signatures[name] == signature)) for name in met}
        return sorted(met, key=lambda name: (-shares[name], name))[:MOST_COMPARED]


def _bands(signature: Hashes) -> list[bytes]:
    data = signature.tobytes()
    width = ROWS * signature.itemsize
    return [data[at : at + width] for at in range(0, len(data), width)]


def _key(example: Example) -> tuple[object, ...]:
    """What has to be the same in two examples."""
    asked = tuple(words(example.question))
    if len(asked) >= LONG_QUESTION:
        asked = tuple(word for word in asked if word not in SMALL)
    other = (example.history, example.tools, example.steps)
    return example.task, example.answerable, asked, len(example.passages), other


def _repeated(examples: Sequence[Example], places: Sequence[int]) -> dict[int, int]:
    """Of examples with the same key, those that repeat another, and which."""
    index, found = Lookalikes(), dict[int, int]()
    for place in places:
        example = examples[place]
        signature = np.minimum.reduce([_signature(text) for text in _texts(example)])
        same = next((other for other in index.like(signature) if _same(examples[other], example)), None)
        if same is None:
            index.add(place, signature)
        else:
            found[place] = same
    return found


def _texts(example: Example) -> Iterable[str]:
    return example.answer, *example.passages


def _same(one: Example, other: Example) -> bool:
    pairs = zip(_texts(one), _texts(other), strict=True)
    return all(similarity(mine, yours) >= THRESHOLD for mine, yours in pairs)


class _Hashes(dict[str, int]):
    """64 bits for each word, the same in every run."""

    def __missing__(self, word: str) -> int:
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self[word] = value = int.from_bytes(digest, "little")
        return value


@lru_cache(maxsize=4096)
def _runs(text: str) -> Hashes:
    """The hashes of a text's runs of five words, sorted, each once; of fewer words, of the whole text."""
    found = words(text)
    hashes = np.fromiter(map(_WORDS.__getitem__, found), np.uint64, len(found))
    runs = max(len(found) - RUN + 1, 1)
    mixed: Hashes = np.zeros(runs, np.uint64)
    for place in range(min(RUN, len(found))):
        mixed = (mixed ^ hashes[place : place + runs]) * _STEP
        mixed ^= mixed >> np.uint64(29)
    return np.unique(mixed)


@lru_cache(maxsize=4096)
def _signature(text: str) -> Hashes:
    """For each of 64 orders of all runs, the first of the text's: (64,)."""
    runs = _runs(text)
    signature: Hashes = (runs[:, None] * _FACTORS).min(axis=0)
    return signature


_WORDS = _Hashes()
