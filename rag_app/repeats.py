"""Ends an answer that goes round in circles, as small models do under greedy decoding. Text in, text out."""

import math
import re
from collections import Counter

LEAST_WORDS = 4
"""A sentence shorter than this may well occur twice."""
SHORT_TIMES = 3
"""How often a shorter one may occur."""
LOOP_WORDS = 9
"""Words that a phrase, repeated at least three times, must cover to count as a loop within a sentence."""
LONGEST_PHRASE = 12
NUMBER = re.compile(r"\[\d{0,3}\]?|^\s*\d{1,3}[.)]\s")
"""What may differ between repetitions: the marker of a passage, the number of a list's item."""
LONGEST_RUN = 40
"""Times that one letter or digit may follow itself."""


class Repeats:
    """Passes an answer on until a sentence comes a second time, or a phrase comes over and over.

    What might become a repeated sentence is held back until it differs, so a repetition is never shown.
    """

    def __init__(self) -> None:
        self.looping = False
        """Whether the answer should end here."""
        self._seen: set[str] = set()
        self._short: Counter[str] = Counter()
        self._sentence = ""
        self._held = ""
        self._in_code = False

    def feed(self, text: str) -> str:
        """Takes the next piece; gives what can be shown."""
        shown = ""
        for character in text:
            if not self.looping:
                shown += self._take(character)
        return shown

    def finish(self) -> str:
        """The rest, when the answer has ended; nothing where that was only the start of a repetition."""
        held, self._held = self._held, ""
        return "" if self.looping or (self._begins_like_another() and self._long_enough()) else held

    def _take(self, character: str) -> str:
        self._sentence += character
        self._held += character
        ended = character.isspace() and (character == "\n" or self._sentence.rstrip().endswith((".", "!", "?")))
        if ended:
            self._end_sentence()
        elif self._sentence.strip() and self._begins_like_another():
            return ""
        elif not self._in_code:
            self.looping = self._loops() if character.isspace() else self._drones()
        shown, self._held = self._held, ""
        return shown

    def _end_sentence(self) -> None:
        self._in_code ^= self._sentence.count("```") % 2 == 1
        if self._key() in self._seen and not self._in_code:
            self.looping, self._held = True, ""
        elif self._long_enough() and not self._in_code:
            self._seen.add(self._key())
        elif not self._in_code and any(c.isalnum() for c in self._sentence):
            self._short[self._key()] += 1
            if self._short[self._key()] == SHORT_TIMES:
                self._seen.add(self._key())
        self._sentence = ""

    def _key(self) -> str:
        return " ".join(NUMBER.sub("", self._sentence).split()).casefold()

    def _long_enough(self) -> bool:
        return len(self._sentence.split()) >= LEAST_WORDS

    def _begins_like_another(self) -> bool:
        key = self._key()
        return not self._in_code and any(sentence.startswith(key) for sentence in self._seen)

    def _drones(self) -> bool:
        tail = self._sentence[-LONGEST_RUN:]
        return len(tail) == LONGEST_RUN and tail[0].isalnum() and len(set(tail)) == 1

    def _loops(self) -> bool:
        words = self._sentence.casefold().split()
        for phrase in range(1, LONGEST_PHRASE + 1):
            times = max(3, math.ceil(LOOP_WORDS / phrase))
            tail = words[-phrase * times :]
            if len(tail) == phrase * times and tail == tail[:phrase] * times:
                return True
        return False
