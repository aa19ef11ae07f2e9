"""Ends a text where one of several texts would come. Knows nothing of tokens or models."""

from bisect import bisect_left
from collections.abc import Collection


class Stops:
    """Holds text back until it is sure that no stop text begins in it; the stop text itself is never given out.

    The number of stop texts costs nothing per piece but a binary search.
    """

    def __init__(self, stops: Collection[str]) -> None:
        self._sorted = sorted(set(stops))
        self._stops = frozenset(stops)
        self._lengths = sorted({len(stop) for stop in stops})
        self._held = ""
        self.ended = False
        """Whether one of the texts has come."""

    def feed(self, text: str) -> str:
        """Takes the next piece; gives what may be shown."""
        if not self._stops:
            return text
        self._held += text
        for start in range(len(self._held)):
            if any(self._held[start : start + length] in self._stops for length in self._lengths):
                self.ended = True
                shown, self._held = self._held[:start], ""
                return shown
        return self._release(next(filter(self._begins_a_stop, range(len(self._held))), len(self._held)))

    def rest(self) -> str:
        """What is held back at the end of the text."""
        return self._release(len(self._held))

    def _release(self, count: int) -> str:
        shown, self._held = self._held[:count], self._held[count:]
        return shown

    def _begins_a_stop(self, start: int) -> bool:
        tail = self._held[start:]
        place = bisect_left(self._sorted, tail)
        return place < len(self._sorted) and self._sorted[place].startswith(tail)
