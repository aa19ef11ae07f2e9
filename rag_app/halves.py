"""Halves of surrogate pairs, which JSON can write in ASCII and no tokenizer, file or server can take."""


def repaired(text: str) -> str:
    """The text with U+FFFD for each half of a pair that stands alone; pairs become their character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
