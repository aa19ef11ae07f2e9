"""A GGUF file opened by llama.cpp: its vocabulary, template and window. Knows nothing of prompts or replies."""

import ctypes
import os
from functools import cached_property
from typing import Any

from rag_app.engines.marks import MARK, unmarked, whole

SLOTS = 4
"""Most prompts whose evaluated beginnings are kept."""
SHARE = 16
"""The slots together take at most this part of the machine's memory, but there is always one."""
LEAST_WINDOW = 64
"""Tokens below which the file's own word for its window is taken for a mistake."""


class Refused(Exception):
    """What the program explains in its own words; the arguments are its kind and a message."""


class Model:
    """The weights and the vocabulary.

    Raises:
        Refused: 'invalid' where llama.cpp cannot load the file, 'no_template' where nobody knows how to ask the model.
    """

    def __init__(self, path: str, n_ctx: int, vocab_only: bool = False) -> None:
        import llama_cpp

        llama_cpp.llama_backend_init()
        hush()
        self.api: Any = llama_cpp
        settings = llama_cpp.llama_model_default_params()
        settings.vocab_only = vocab_only
        self.handle = llama_cpp.llama_model_load_from_file(path.encode(), settings)
        if not self.handle:
            raise Refused("invalid", "llama.cpp cannot load it")
        self.vocab = llama_cpp.llama_model_get_vocab(self.handle)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.template = self._metadata("tokenizer.chat_template")
        if not self.template:
            raise Refused("no_template", "no chat template")
        trained = int(llama_cpp.llama_model_n_ctx_train(self.handle))
        self.n_ctx = min(n_ctx, trained) if trained >= LEAST_WINDOW else n_ctx
        self.bos = self._name(llama_cpp.llama_vocab_bos(self.vocab))
        self.eos = self._name(llama_cpp.llama_vocab_eos(self.vocab))
        self._pieces: dict[int, bytes] = {}
        self._marks: dict[int, str] = {}
        self._buffer = ctypes.create_string_buffer(64)

    @cached_property
    def ends(self) -> frozenset[int]:
        """The tokens that end a reply."""
        return frozenset(t for t in range(self.n_vocab) if self.api.llama_vocab_is_eog(self.vocab, t))

    @cached_property
    def begin(self) -> list[int]:
        """What stands before every prompt: the token for it, or nothing."""
        add = self.api.llama_vocab_get_add_bos(self.vocab)
        return [self.api.llama_vocab_bos(self.vocab)] if add else []

    @cached_property
    def slots(self) -> int:
        """How many prompts' KV caches are affordable, 1 to SLOTS."""
        api = self.api
        heads = api.llama_model_n_head_kv(self.handle) / max(api.llama_model_n_head(self.handle), 1)
        # keys and values, 2 bytes a number
        token = 4 * api.llama_model_n_layer(self.handle) * api.llama_model_n_embd(self.handle) * heads
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
        return int(max(1, min(SLOTS, memory / SHARE // max(token * self.n_ctx, 1))))

    @cached_property
    def rewinds(self) -> bool:
        """Whether the last tokens can be taken out of its memory again; not so where it is a running state."""
        return not (
            self.api.llama_model_is_recurrent(self.handle)
            or self.api.llama_model_is_hybrid(self.handle)
            or self.api.llama_model_has_encoder(self.handle)
        )

    def tokens(self, text: str, special: bool) -> list[int]:
        """Token ids; control tokens, and what looks like them, count as such only where `special`."""
        text = whole(text)
        if special:
            return self._tokenized(text, True)
        return unmarked(text, lambda part: self._tokenized(part, False), self._mark)

    def _tokenized(self, text: str, special: bool) -> list[int]:
        data = text.encode()
        room = len(data) + 8
        buffer = (ctypes.c_int32 * room)()
        count = self.api.llama_tokenize(self.vocab, data, len(data), buffer, room, False, special)
        if count < 0:
            buffer = (ctypes.c_int32 * -count)()
            count = self.api.llama_tokenize(self.vocab, data, len(data), buffer, -count, False, special)
        return list(buffer[:count])

    def piece(self, token: int) -> bytes:
        """The text of a token; empty for control tokens."""
        if token not in self._pieces:
            size = self.api.llama_token_to_piece(self.vocab, token, self._buffer, len(self._buffer), 0, False)
            if size < 0:
                self._buffer = ctypes.create_string_buffer(-size)
                return self.piece(token)
            self._pieces[token] = self._buffer.raw[:size]
        return self._pieces[token]

    def _mark(self, token: int) -> str:
        """The text of a token that llama.cpp finds in any text, if it looks like a mark."""
        if token not in self._marks:
            attributes = self.api.llama_vocab_get_attr(self.vocab, token)
            text = self._name(token) if attributes & self.api.LLAMA_TOKEN_ATTR_USER_DEFINED else ""
            self._marks[token] = text if MARK.fullmatch(text) else ""
        return self._marks[token]

    def _name(self, token: int) -> str:
        """A control token as templates write it; empty where the vocabulary has none."""
        text = self.api.llama_vocab_get_text(self.vocab, token) if token >= 0 else b""
        return (text or b"").decode("utf-8", "replace")

    def _metadata(self, key: str) -> str:
        size = self.api.llama_model_meta_val_str(self.handle, key.encode(), None, 0)
        if size <= 0:
            return ""
        buffer = ctypes.create_string_buffer(size + 1)
        self.api.llama_model_meta_val_str(self.handle, key.encode(), buffer, size + 1)
        return buffer.value.decode("utf-8", "replace")


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_SILENT: list[Any] = []


def hush() -> None:
    """Keeps llama.cpp from writing to stderr, from now on."""
    import llama_cpp

    if not _SILENT:  # llama.cpp calls it from its own threads for as long as the process lives
        _SILENT.append(llama_cpp.llama_log_callback(lambda level, text, data: None))
    llama_cpp.llama_log_set(_SILENT[0], ctypes.c_void_p(0))
