"""A model as the engine that serves it has it: tokens, logits at every position, a short reply. Compares nothing."""

import ctypes
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from rag_app.engines.native import Model, Refused, cores
from rag_app.prompt import Message, render

if TYPE_CHECKING:
    from rag_app.engines.layout import Layout

WINDOW = 1024
"""Tokens that a proof needs at most."""
BATCH = 128
"""Tokens that llama.cpp evaluates at once, and logits of so many positions stand in memory; that of serving."""


class Engine(Protocol):
    """What a proof asks."""

    name: str
    template: str

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens that ask for an answer."""

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end a reply."""

    @property
    def control(self) -> frozenset[int]:
        """The tokens that are no text."""

    def logits(self, tokens: Sequence[int], last: int) -> Any:
        """(last, vocabulary) float32: what follows each of the last tokens."""

    def reply(self, prompt: Sequence[int], most: int) -> list[int]:
        """What is written behind a prompt, always the likeliest token; up to one that ends it, or `most`."""


class LlamaCpp:
    """A GGUF file, with a LoRA on it where one is given. To be closed, or used by `with`.

    Raises:
        Refused: llama.cpp cannot load the file or the LoRA.
    """

    name = "llama.cpp"

    def __init__(self, file: Path, adapter: Path | None = None) -> None:
        self._model, self._context = Model(str(file), WINDOW), None
        api = self._api = self._model.api
        self.template: str = self._model.template
        try:
            settings = api.llama_context_default_params()
            settings.n_ctx, settings.n_batch, settings.n_ubatch = WINDOW, BATCH, BATCH
            settings.n_threads = settings.n_threads_batch = cores()
            settings.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED  # as in serving
            # Serving keeps them in 16 bits, which would hide the file's own errors: those of f32 are 500 times smaller.
            settings.type_k = settings.type_v = api.GGML_TYPE_F32
            self._context = api.llama_init_from_model(self._model.handle, settings)
            if not self._context:
                raise Refused("memory", f"there is no memory for a window of {WINDOW} tokens")
            if adapter:
                self._apply(adapter)
        except BaseException:
            self.close()
            raise

    def _apply(self, file: Path) -> None:
        api = self._api
        adapter = api.llama_adapter_lora_init(self._model.handle, str(file).encode())  # freed with the model
        if not adapter:
            raise Refused("invalid", "llama.cpp cannot load the LoRA")
        one, scale = (api.llama_adapter_lora_p_ctypes * 1)(adapter), (ctypes.c_float * 1)(1.0)
        if api.llama_set_adapters_lora(self._context, one, 1, scale):
            raise Refused("invalid", "llama.cpp cannot apply the LoRA")

    def close(self) -> None:
        """Gives the memory back."""
        if self._context:
            self._api.llama_free(self._context)
        if self._model.handle:
            self._api.llama_model_free(self._model.handle)
        self._context = self._model.handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens that ask for an answer."""
        from rag_app.engines.worker import tokenise

        segments = render(messages, self.template, self._model.bos, self._model.eos)
        return [token for batch in tokenise(self._model, segments) for token in batch]

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end a reply."""
        return self._model.ends

    @cached_property
    def control(self) -> frozenset[int]:
        """The tokens that are no text."""
        vocab, model = self._model.vocab, self._model
        return frozenset(one for one in range(model.n_vocab) if self._api.llama_vocab_is_control(vocab, one))

    def logits(self, tokens: Sequence[int], last: int) -> Any:
        """(last, vocabulary) float32: what follows each of the last tokens."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        first = len(tokens) - last
        parts = [self._evaluate(tokens[at : at + BATCH], at, first).copy() for at in range(0, len(tokens), BATCH)]
        return np.concatenate(parts)

    def reply(self, prompt: Sequence[int], most: int) -> list[int]:
        """What is written behind a prompt, always the likeliest token; up to one that ends it, or `most`."""
        written = [int(self.logits(prompt, 1)[0].argmax())]
        while written[-1] not in self.ends and len(written) < most:
            at = len(prompt) + len(written) - 1
            written.append(int(self._evaluate(written[-1:], at, at)[0].argmax()))
        return written

    def _evaluate(self, tokens: Sequence[int], position: int, first: int) -> Any:
        """A view of what follows those from position `first` on, (tokens, vocabulary); gone with the next call."""
        api, count, wanted = self._api, len(tokens), range(first, position + len(tokens))
        batch = api.llama_batch_init(count, 0, 1)
        try:
            batch.n_tokens = count
            for at, token in enumerate(tokens):
                batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, position + at, 1
                batch.seq_id[at][0], batch.logits[at] = 0, position + at in wanted
            if code := api.llama_decode(self._context, batch):
                raise Refused("failed", f"llama_decode gave {code}")
        finally:
            api.llama_batch_free(batch)
        shape = (min(count, len(wanted)), self._model.n_vocab)
        pointer = api.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, shape=shape) if len(wanted) else np.empty(shape, np.float32)


class Transformers:
    """A model in memory with its tokenizer; it computes as it was loaded."""

    name = "transformers"

    def __init__(self, model: Any, layout: "Layout") -> None:
        self._model, self._layout, self.template = model, layout, layout.template

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens that ask for an answer."""
        return self._layout.prompt(messages)

    @cached_property
    def ends(self) -> frozenset[int]:
        """The tokens that end a reply."""
        from rag_app.engines.pieces import ends

        return ends(self._layout.tokenizer, self._model)

    @cached_property
    def control(self) -> frozenset[int]:
        """The tokens that are no text."""
        return frozenset(token for token, one in self._layout.tokenizer.added_tokens_decoder.items() if one.special)

    def logits(self, tokens: Sequence[int], last: int) -> Any:
        """(last, vocabulary) float32: what follows each of the last tokens."""
        return self._compute(tokens, None, last)[0]

    def reply(self, prompt: Sequence[int], most: int) -> list[int]:
        """What is written behind a prompt, always the likeliest token; up to one that ends it, or `most`."""
        found, cache = self._compute(prompt, None, 1)
        written = [int(found[0].argmax())]
        while written[-1] not in self.ends and len(written) < most:
            found, cache = self._compute(written[-1:], cache, 1)
            written.append(int(found[0].argmax()))
        return written

    def _compute(self, tokens: Sequence[int], cache: Any, last: int) -> tuple[Any, Any]:
        import torch

        with torch.inference_mode():
            row = torch.tensor([list(tokens)], device=self._model.device)
            found = self._model(input_ids=row, past_key_values=cache, use_cache=True, logits_to_keep=last)
        return found.logits[0].float().cpu().numpy(), found.past_key_values
