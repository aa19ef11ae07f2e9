"""What can go wrong while indexing or searching, each with the remedy in its message. Imports nothing of ours.

RagError                  everything this project raises on purpose; the message is one line for a person
├── LoadError             one document cannot be read; the build lists it and goes on
├── NoDocuments           nothing readable under the given paths
├── NoIndex               there is no index where one was expected
├── IndexDamaged          an index is there, but a part of it is missing, cut or newer than this program
├── IndexMismatch         the index was built with another encoder
├── IndexBusy             another build holds the lock
├── IndexClosed           an opened index is used after it was closed
├── EncoderNotFound       the encoder is neither installed nor at the path that was given
└── QueryInvalid          the query is empty or too long
"""


class RagError(Exception):
    """Base of every error raised on purpose. Its text is one line that names the remedy."""


class LoadError(RagError):
    """One document cannot be read; the text is the reason alone, the path is known to the caller."""


class NoDocuments(RagError):
    """Nothing readable under the given paths."""


class NoIndex(RagError):
    """There is no index where one was expected."""


class IndexDamaged(RagError):
    """An index is there, but a part of it is missing, cut, or of a newer schema."""


class IndexMismatch(RagError):
    """The index was built with another encoder than the one in use."""


class IndexBusy(RagError):
    """Another build of the same index is running."""


class IndexClosed(RagError):
    """An opened index is used after it was closed."""


class EncoderNotFound(RagError):
    """The encoder is neither installed nor at the path that was given."""


class QueryInvalid(RagError):
    """The query is empty or longer than the encoder can represent."""
