"""Chooses the next token from logits, by a reply's settings. Knows nothing of text, of prompts or of evaluation."""

import ctypes
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from rag_app.engines.native import Model, Refused

NEAR = 64
"""Likeliest tokens that a grammar is asked about before all of them are."""
CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""llama.cpp's llama_token_data."""


class Mask(Protocol):
    """Forbids tokens; see quoting.py."""

    def apply(self, logits: Any) -> None:
        """Sets what is forbidden next to -inf, in place."""
        ...

    def accept(self, token: int) -> None:
        """Takes note of the token that was chosen."""
        ...


class Sampler:
    """One reply's choices: mask, penalties, grammar, then top_k, typical_p, top_p, min_p, temperature, in this order.

    The order is llama.cpp's; the cuts see the logits before the temperature, where Transformers applies it first.

    Args:
        model: whose tokens.
        settings: as in `Decoding`; temperature 0 takes the likeliest token.
        prompt: its tokens count for the repetition penalty, as in Transformers.
        grammar: in GBNF, with the rule `root`.
        mask: applied before everything else.

    Raises:
        Refused: 'grammar' where it does not parse.
    """

    def __init__(
        self,
        model: Model,
        settings: dict[str, Any],
        prompt: Sequence[int] = (),
        grammar: str | None = None,
        mask: Mask | None = None,
    ) -> None:
        self._mask = mask
        self._penalties = _penalties(settings, prompt)
        self._grammar = Grammar(model, grammar) if grammar is not None else None
        self._draw = _Draw(model, settings) if settings["temperature"] > 0 else None

    def next(self, logits: Any) -> int | None:
        """The next token, from logits of (n_vocab,) float32, which are changed; None where nothing is allowed."""
        if self._mask:
            self._mask.apply(logits)
        if self._penalties:
            self._penalties.apply(logits)
        token = self._choose(logits)
        if self._grammar and not self._grammar.allows([token])[0]:
            token = self._among_allowed(logits, self._grammar)
        return token if logits[token] > -np.inf else None

    def accept(self, token: int) -> None:
        """Takes note of the token that was chosen; not of one that ends the reply."""
        for part in (self._mask, self._penalties, self._grammar):
            if part:
                part.accept(token)

    def _choose(self, logits: Any) -> int:
        likeliest = int(logits.argmax())
        if self._draw and logits[likeliest] > -np.inf:
            return self._draw(logits)
        return likeliest

    def _among_allowed(self, logits: Any, grammar: "Grammar") -> int:
        # As llama.cpp does it: a grammar is slow beside a small model, so it is put to all tokens only where the
        # token that would have been taken is not allowed. Greedy choices are exactly those of the full mask.
        if not self._draw:
            near = np.argpartition(logits, -NEAR)[-NEAR:]
            near = near[np.lexsort((near, -logits[near]))]
            allowed = near[grammar.allows(near)]
            if len(allowed):
                return int(allowed[0])
        logits[~grammar.allows(np.arange(len(logits)))] = -np.inf
        return self._choose(logits)


def _penalties(settings: dict[str, Any], prompt: Sequence[int]) -> "_Penalties | None":
    repetition, presence, frequency = (settings[f"{name}_penalty"] for name in ("repetition", "presence", "frequency"))
    if (repetition, presence, frequency) == (1.0, 0.0, 0.0):
        return None
    return _Penalties(prompt, repetition, presence, frequency)


class _Penalties:
    """Repetition (Keskar et al. 2019) over prompt and reply, presence and frequency (OpenAI's) over the reply."""

    def __init__(self, prompt: Sequence[int], repetition: float, presence: float, frequency: float) -> None:
        self._repetition, self._presence, self._frequency = repetition, presence, frequency
        self._seen = dict.fromkeys(prompt)
        self._counts: dict[int, int] = {}

    def apply(self, logits: Any) -> None:
        if self._repetition != 1:
            seen = np.fromiter(self._seen, np.int64, len(self._seen))
            found = logits[seen]
            logits[seen] = np.where(found > 0, found / self._repetition, found * self._repetition)
        if self._counts:
            written = np.fromiter(self._counts, np.int64, len(self._counts))
            times = np.fromiter(self._counts.values(), np.float32, len(self._counts))
            logits[written] -= self._presence + self._frequency * times

    def accept(self, token: int) -> None:
        self._seen[token] = None
        self._counts[token] = self._counts.get(token, 0) + 1


class _Draw:
    """llama.cpp's chain of samplers for temperatures above 0."""

    def __init__(self, model: Model, settings: dict[str, Any]) -> None:
        api = self._api = model.api
        self._chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        for part in (
            api.llama_sampler_init_top_k(min(settings["top_k"], model.n_vocab)),
            api.llama_sampler_init_typical(settings["typical_p"], 1),
            api.llama_sampler_init_top_p(settings["top_p"], 1),
            api.llama_sampler_init_min_p(settings["min_p"], 1),
            api.llama_sampler_init_temp(settings["temperature"]),
            api.llama_sampler_init_dist(min(settings["seed"], 0xFFFFFFFE)),  # one more would mean: at random
        ):
            api.llama_sampler_chain_add(self._chain, part)

    def __call__(self, logits: Any) -> int:
        candidates = _Candidates(self._api, np.arange(len(logits)), logits)
        self._api.llama_sampler_apply(self._chain, ctypes.byref(candidates.struct))
        return candidates.selected()

    def __del__(self) -> None:
        self._api.llama_sampler_free(self._chain)


class Grammar:
    """Which tokens a GBNF grammar allows next.

    Raises:
        Refused: 'grammar' where it does not parse.
    """

    def __init__(self, model: Model, text: str) -> None:
        self._api, self._sampler = model.api, None
        if not text.strip() or "\0" in text:
            raise Refused("grammar", "it is empty or holds a zero byte")
        with _stderr() as said:
            self._sampler = model.api.llama_sampler_init_grammar(model.vocab, text.encode(), b"root")
        if not self._sampler:
            raise Refused("grammar", _reason("".join(said)))

    def allows(self, tokens: Any) -> Any:
        """Whether each of the tokens may come next: (n,) bool."""
        candidates = _Candidates(self._api, tokens, 0)
        self._api.llama_sampler_apply(self._sampler, ctypes.byref(candidates.struct))
        return candidates.array["logit"] == 0

    def accept(self, token: int) -> None:
        """Takes note of the token that was chosen; it must be an allowed one."""
        self._api.llama_sampler_accept(self._sampler, token)

    def __del__(self) -> None:
        if self._sampler:
            self._api.llama_sampler_free(self._sampler)


class _Candidates:
    """Tokens with their logits, as llama.cpp's samplers take them."""

    def __init__(self, api: Any, tokens: Any, logits: Any) -> None:
        self.array = np.zeros(len(tokens), CANDIDATE)
        self.array["id"], self.array["logit"] = tokens, logits
        data = self.array.ctypes.data_as(ctypes.POINTER(api.llama_token_data))
        self.struct = api.llama_token_data_array(data=data, size=len(tokens), selected=-1, sorted=False)

    def selected(self) -> int:
        """The token that was drawn."""
        return int(self.struct.data[self.struct.selected].id)


@contextmanager
def _stderr() -> Iterator[list[str]]:
    """Gives what native code writes to stderr meanwhile, filled in at the end."""
    said: list[str] = []
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            said.append(file.read().decode("utf-8", "replace"))


def _reason(said: str) -> str:
    """The first line of what llama.cpp's parser says, without the name of the function."""
    first = next(iter(said.strip().splitlines()), "")
    return first.split(": ", 1)[-1].removeprefix("error parsing grammar: ")[:200] or "llama.cpp does not say why"
