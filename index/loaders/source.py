"""What a loader is given. Knows no format."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Source:
    """The content of one file, and what is to be done with it."""

    name: str
    """The file's name without its folder; only its suffixes count."""
    data: bytes
    ocr: bool = False
    """Whether words in pictures of whole pages are read too."""
    warnings: list[str] = field(default_factory=list)
    """A loader adds a line for what it had to leave out of a file that it could read otherwise."""
    depth: int = 0
    """How many files this one lies within: an attachment's is 1."""
