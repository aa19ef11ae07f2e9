"""Evaluates tokens with llama.cpp and keeps what it evaluated. Knows nothing of text, of sampling or of processes.

A prompt is a list of batches, cut where the prompt alone decides (`cut`). Beginnings of prompts are kept in slots of
the KV cache, and a later prompt takes from one as many leading batches as are the same. Numbers computed in batches
of another shape are rounded otherwise; because only whole batches are taken over, an answer does not depend on what
was asked before. For that reason the tokens of an earlier reply, which were evaluated one by one, are not taken over:
where they come back in a prompt they are read in batches, like the rest of it.

What was read with an adapter is taken over only for prompts that are read with the same ones, at the same weights.
"""

import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rag_app.engines.loras import Key, Loras, Use
from rag_app.engines.native import Model, Refused, cores

BATCH = 128
"""Most tokens that are evaluated at once; from 32 to 512 the bundled model reads equally fast (bench/engine.py)."""
WORTH_COPYING = 256
"""Tokens whose evaluation takes longer than the copying of a slot, however large the model."""

ABORTED = 2
"""What llama_decode gives then."""

Batch = tuple[int, ...]


def cut(pieces: Iterable[tuple[list[int], bool]], size: int = BATCH) -> list[Batch]:
    """Cuts a prompt into batches: where a message's content begins, but for the first's, and every `size` tokens.

    What the template writes between two contents goes with the first of them. So a whole prompt is a beginning of the
    prompt that follows up on it, where the template writes the same before an answer to come as before one that came.

    Args:
        pieces: token ids of the prompt's segments, each with whether it is the content of a message.
        size: most tokens of a batch.
    """
    batches: list[Batch] = []
    current: list[int] = []
    begun = False
    for tokens, content in pieces:
        if content and begun and current:
            batches.append(tuple(current))
            current = []
        begun = begun or content
        current += tokens
        while len(current) > size:
            batches.append(tuple(current[:size]))
            current = current[size:]
    return [*batches, tuple(current)] if current else batches


@dataclass
class _Slot:
    number: int
    batches: list[Batch] = field(default_factory=list)
    """Of the prompt that it holds; a reply may follow in the cache."""
    logits: Any = None
    """What follows them, where that is known."""
    used: int = 0
    adapters: Key = ()
    """That it was read with."""

    def shared(self, prompt: list[Batch], adapters: Key) -> list[Batch]:
        """The leading batches that the prompt has, too; not its last one where the logits are not known."""
        if adapters != self.adapters:
            return []
        most = len(prompt) if self.logits is not None and self.batches == prompt else len(prompt) - 1
        same = 0
        while same < min(len(self.batches), most) and self.batches[same] == prompt[same]:
            same += 1
        return self.batches[:same]

    def lost(self, prompt: list[Batch]) -> int:
        """Tokens that would have to be read again for its own prompt."""
        return _length(self.batches[len(self.shared(prompt, self.adapters)) :])


class Decoder:
    """The KV cache of a model, in slots, and the evaluation of prompts and replies in them.

    Args:
        model: whose tokens are evaluated.
        slots: how many prompts are kept; by default what the memory allows.
        batch: most tokens of a batch.

    Raises:
        Refused: 'memory' where there is too little for the cache.
    """

    def __init__(self, model: Model, slots: int | None = None, batch: int = BATCH) -> None:
        self._model, self._api, self._most = model, model.api, batch
        self._slots = [_Slot(number) for number in range(self._open(slots or (model.slots if model.rewinds else 1)))]
        self._memory = self._api.llama_get_memory(self._context)
        self._slot = self._slots[0]
        self._loras = Loras(model)
        self._end = self._clock = 0
        self._next: Any = None
        self._batch = _Arrays(self._api, batch)
        self._unwanted: Callable[[], bool] = lambda: False
        self._abort = self._api.ggml_abort_callback(lambda data: self._unwanted())

    def _open(self, slots: int) -> int:
        settings = self._api.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max, settings.kv_unified = self._model.n_ctx * slots, slots, False
        settings.n_batch = settings.n_ubatch = self._most
        settings.n_threads = settings.n_threads_batch = cores()
        settings.no_perf = True
        # On processors flash attention writes 15% slower at 2,600 tokens, and reads no faster.
        settings.flash_attn_type = self._api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = self._api.llama_init_from_model(self._model.handle, settings)
        if self._context:
            return slots
        if slots == 1:
            raise Refused("memory", f"no memory for a window of {self._model.n_ctx:,} tokens")
        return self._open(1)

    def read(
        self, prompt: list[Batch], unwanted: Callable[[], bool] = lambda: False, adapters: Sequence[Use] = ()
    ) -> Iterator[int]:
        """Evaluates a prompt, batch by batch; ends early once it is `unwanted`. The reply has the same adapters.

        Yields:
            how many tokens need no evaluation any more: first those reused, then after each batch.

        Raises:
            Refused: 'adapter' where one cannot be loaded.
        """
        applied = self._loras.apply(self._context, adapters)
        slot, shared = self._choose(prompt, applied)
        self._slot, slot.adapters = slot, applied
        self._clock += 1
        slot.used = self._clock
        self._rewind(len(shared))
        self._unwanted = unwanted
        yield self._end
        for number, batch in enumerate(prompt[len(shared) :], len(shared) + 1):
            if unwanted() or not self._read_batch(batch, logits=number == len(prompt)):
                return
            slot.batches.append(batch)
            if number == len(prompt):
                slot.logits = self._logits().copy()
            yield self._end
        self._next = slot.logits.copy()

    def write(self, token: int) -> None:
        """Evaluates one token of the reply."""
        self._decode([token], logits=True)
        self._next = self._logits()

    def logits(self) -> Any:
        """What comes next, after a whole prompt or a token: (n_vocab,) float32, to be changed at will until then."""
        return self._next

    def forget(self) -> None:
        """Drops every prompt that is kept."""
        self._api.llama_memory_clear(self._memory, True)
        for slot in self._slots:
            slot.batches, slot.logits = [], None

    def _choose(self, prompt: list[Batch], adapters: Key) -> tuple[_Slot, list[Batch]]:
        """The slot to work in: one whose whole prompt this one begins with, else the one longest unused.

        The latter takes over what another has in common with the prompt, so that the other keeps the rest of its own;
        where that rest is short, it is given up instead.
        """
        if not self._model.rewinds:
            return self._slots[0], []
        best = max(
            self._slots, key=lambda slot: (_length(slot.shared(prompt, adapters)), -slot.lost(prompt), -slot.used)
        )
        oldest = min(self._slots, key=lambda slot: slot.used)
        shared, own, lost = best.shared(prompt, adapters), oldest.shared(prompt, adapters), best.lost(prompt)
        if shared and (lost == 0 or (lost < WORTH_COPYING and oldest.batches)):
            return best, shared
        if _length(shared) - _length(own) >= WORTH_COPYING:
            self._copy(best, oldest)
            return oldest, shared
        return oldest, own

    def _copy(self, source: _Slot, target: _Slot) -> None:
        self._api.llama_memory_seq_rm(self._memory, target.number, -1, -1)
        self._api.llama_memory_seq_cp(self._memory, source.number, target.number, -1, -1)
        target.batches, target.logits = list(source.batches), source.logits

    def _rewind(self, kept: int) -> None:
        """Takes out of the slot what follows its first `kept` batches."""
        if kept < len(self._slot.batches):
            del self._slot.batches[kept:]
            self._slot.logits = None
        self._end = _length(self._slot.batches)
        self._api.llama_memory_seq_rm(self._memory, self._slot.number, self._end, -1)

    def _read_batch(self, batch: Batch, logits: bool) -> bool:
        """False where it was given up in the middle."""
        # llama.cpp asks after every operation, which is cheap beside a batch but not beside a single token
        self._api.llama_set_abort_callback(self._context, self._abort, None)
        try:
            return self._decode(batch, logits)
        finally:
            self._api.llama_set_abort_callback(self._context, self._api.ggml_abort_callback(0), None)

    def _logits(self) -> Any:
        """A view of what the last evaluation says, gone with the next one."""
        pointer = self._api.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(pointer, shape=(self._model.n_vocab,))

    def _decode(self, tokens: Batch | list[int], logits: bool) -> bool:
        self._batch.fill(tokens, self._end, self._slot.number, logits)
        code = self._api.llama_decode(self._context, self._batch.struct)
        if code not in (0, ABORTED):
            self._rewind(0)
            raise Refused("failed", f"llama_decode gave {code}")
        self._end += len(tokens)
        return bool(code == 0)


def _length(batches: list[Batch]) -> int:
    return sum(map(len, batches))


class _Arrays:
    """The arrays of a llama_batch, filled without a step of Python per token."""

    def __init__(self, api: Any, size: int) -> None:
        self._tokens, self._positions = np.zeros(size, np.int32), np.zeros(size, np.int32)
        self._ones, self._logits = np.ones(size, np.int32), np.zeros(size, np.int8)
        self._sequence = ctypes.c_int32(0)
        one = ctypes.POINTER(ctypes.c_int32)
        self._sequences = (one * size)(*[ctypes.pointer(self._sequence)] * size)
        self.struct = api.llama_batch(
            n_tokens=0,
            token=self._tokens.ctypes.data_as(one),
            embd=None,
            pos=self._positions.ctypes.data_as(one),
            n_seq_id=self._ones.ctypes.data_as(one),
            seq_id=self._sequences,
            logits=self._logits.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(self, tokens: Batch | list[int], position: int, sequence: int, logits: bool) -> None:
        """Tokens from `position` on; the logits of the last where asked for."""
        count = self.struct.n_tokens = len(tokens)
        self._tokens[:count] = tokens
        self._positions[:count] = range(position, position + count)
        self._sequence.value = sequence
        self._logits[:count] = 0
        self._logits[count - 1] = logits
