"""Messages to the token ids that a model of Transformers reads, for serving and for training. Knows no model."""

import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from rag_app.engines.marks import unmarked, whole
from rag_app.engines.pieces import END_NAMES, marks
from rag_app.errors import ModelInvalid
from rag_app.prompt import Message, closing, render


class Layout:
    """A tokenizer with its chat template.

    Raises:
        ModelInvalid: the tokenizer has no chat template, or one that cannot be rendered.
    """

    def __init__(self, name: str, tokenizer: Any) -> None:
        template = tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if not template:
            raise ModelInvalid(
                f"the model '{name}' has no chat template, so nobody knows how to ask it. Put a chat_template.jinja "
                "beside its tokenizer, or give another model"
            )
        self.name, self.template, self.tokenizer = name, str(template), tokenizer
        self._marks = marks(tokenizer)
        self._tokenizing = threading.Lock()
        first = tokenizer("a").input_ids
        self._begin = first[:1] if first[:1] == [tokenizer.bos_token_id] else []

    def pieces(self, messages: Sequence[Message]) -> list[tuple[list[int], bool]]:
        """The prompt's tokens, ready for the answer, and whether they are plain text, whatever that looks like.

        Raises:
            ModelInvalid: the template cannot be rendered.
        """
        tokenizer = self.tokenizer
        try:
            segments = render(messages, self.template, tokenizer.bos_token or "", tokenizer.eos_token or "")
        except ValueError as error:
            raise ModelInvalid(f"the model '{self.name}': {error}. Give another model") from error
        found = [(self._tokens(segment.text, segment.special), not segment.special) for segment in segments]
        first = next((tokens for tokens, _ in found if tokens), [])
        if first[:1] != self._begin:  # a template may write it, too
            found.insert(0, (self._begin, False))
        return found

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's tokens, ready for the answer."""
        return [token for tokens, _ in self.pieces(messages) for token in tokens]

    def answer(self, text: str) -> list[int]:
        """An answer's tokens, with the one that ends it."""
        return [*self._tokens(text.strip(), False), self.stop()]

    def stop(self) -> int:
        """The token that ends an answer: what the template writes behind one, else the tokenizer's end of text.

        Raises:
            ModelInvalid: there is none.
        """
        return self._stop

    @cached_property
    def _stop(self) -> int:  # to look through the vocabulary takes 10 ms
        tokenizer = self.tokenizer
        try:
            behind = self._tokens(closing(self.template, tokenizer.bos_token or "", tokenizer.eos_token or ""), True)
        except ValueError as error:
            raise ModelInvalid(f"the model '{self.name}': {error}. Give another model") from error
        ends = {tokenizer.convert_tokens_to_ids(name) for name in END_NAMES & tokenizer.get_vocab().keys()}
        for token in behind:
            if token in ends or token == tokenizer.eos_token_id:
                return token
        if tokenizer.eos_token_id is None:
            raise ModelInvalid(f"the model '{self.name}' has no token that ends an answer. Give another model")
        return int(tokenizer.eos_token_id)

    def _tokens(self, text: str, special: bool) -> list[int]:
        text = whole(text)
        if special:
            return self._tokenized(text, True)
        return unmarked(text, lambda part: self._tokenized(part, False), lambda token: self._marks.get(token, ""))

    def _tokenized(self, text: str, special: bool) -> list[int]:
        with self._tokenizing:  # it keeps the last setting in itself
            found = self.tokenizer(text, add_special_tokens=False, split_special_tokens=not special, verbose=False)
        tokens: list[int] = found["input_ids"]
        return tokens
