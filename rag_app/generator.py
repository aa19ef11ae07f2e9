"""What answering needs of a language model, whichever engine runs it. A seam: no engine is imported here.

Engines are LangChain chat models (`BaseChatModel`) that have, beside LangChain's methods, those of `Generator`.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from rag_app.decoding import Decoding
from rag_app.prompt import Message

if TYPE_CHECKING:
    from rag_app.adapters.registry import Entry


class Generator(Protocol):
    """A language model that answers chat messages."""

    decoding: Decoding

    @property
    def engine(self) -> str:
        """'llama.cpp', 'transformers', 'server' or 'langchain'."""
        ...

    @property
    def abilities(self) -> frozenset[str]:
        """Which of 'grammar', 'quotes' and 'adapters' the engine's `stream` takes; with the last it has `Adaptable`."""
        ...

    def check(self) -> str:
        """The model's name, without loading it; raises a RagError when it cannot be had."""
        ...

    def start(self) -> None:
        """Begins to load the model without waiting for it."""
        ...

    def kill(self) -> None:
        """Ends what the model is doing, at once; the next question works again."""
        ...

    def close(self) -> None:
        """Gives back memory and processes."""
        ...

    def window(self) -> int:
        """Context window in tokens, prompt and reply together; waits until the model is loaded."""
        ...

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt as the model will read it; never too few where the engine can only estimate."""
        ...

    def stream(self, input: Any, config: Any = None, *, stop: Any = None, **kwargs: Any) -> Iterator[Any]:
        """LangChain's: the reply as AIMessageChunks. Closing the iterator, a generator, stops the model.

        Keyword arguments beside `stop` (more texts that end the reply), all optional:
            max_tokens: int, instead of the decoding's.
            grammar: str, a GBNF grammar with the rule `root`; only with the ability 'grammar'.
            adapters: pairs of what `Adaptable.adapter` gives and a weight, for this reply; only with the ability
                'adapters'.
            quotes: list of texts; between quote marks only what stands verbatim in one of them may be written; only
                with the ability 'quotes'.

        Chunks: text in `content`. Without text they are a beat (so that the reply can be stopped while the prompt is
        read), with `response_metadata["place"]`, the number of replies before this one, while it waits in the queue.
        `usage_metadata` counts add up over the chunks; `input_token_details["cache_read"]` are prompt tokens that were
        not evaluated again. The last chunk has `response_metadata["finish_reason"]`: 'stop', 'length' or 'cancelled'.
        """
        ...


class Adaptable(Protocol):
    """What a generator with the ability 'adapters' has, too."""

    def fingerprint(self) -> str:
        """Tells its weights from others (rag_app.fingerprint); '' where nobody knows them."""
        ...

    def adapter(self, entry: "Entry") -> str:
        """What `stream` takes for an adapter; raises AdapterInvalid where it has no form for the engine."""
        ...
