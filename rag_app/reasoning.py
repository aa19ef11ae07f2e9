"""Tells a model's reasoning, where it stands between `<think>` and `</think>`, from its reply. Text in, text out."""

OPEN, CLOSE = "<think>", "</think>"


class Reasoning:
    """Splits a reply as it is written; only reasoning at its very beginning counts as such."""

    def __init__(self) -> None:
        self._held = ""
        self._stage = "before"  # then perhaps "inside" and "closed", then "after"

    def feed(self, text: str) -> tuple[str, str]:
        """Takes the next piece; gives what of it is reasoning and what is reply. Half a tag is held back."""
        self._held += text
        thought = ""
        if self._stage == "before":
            begun = self._held.lstrip()
            if begun.startswith(OPEN):
                self._stage, self._held = "inside", begun[len(OPEN) :]
            elif not OPEN.startswith(begun):
                self._stage = "after"
        if self._stage == "inside":
            thought, tag, rest = self._held.partition(CLOSE)
            if tag:
                self._stage, self._held = "closed", rest
            else:
                keep = next(n for n in range(len(CLOSE) - 1, -1, -1) if thought.endswith(CLOSE[:n]))
                thought, self._held = thought[: len(thought) - keep], thought[len(thought) - keep :]
        if self._stage == "closed":  # the blank lines behind the tag belong to nothing
            self._held = self._held.lstrip()
            self._stage = "after" if self._held else "closed"
        reply, self._held = (self._held, "") if self._stage == "after" else ("", self._held)
        return thought, reply

    def finish(self) -> str:
        """What was held back, when the reply has ended; nothing of reasoning that never ended."""
        held, self._held = self._held, ""
        return "" if self._stage == "inside" else held
