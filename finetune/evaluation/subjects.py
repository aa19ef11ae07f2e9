"""A model in memory as it is served: reads, writes, tells logits at every position, answers. Measures nothing."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from finetune.errors import RecordInvalid
from rag_app.decoding import Decoding
from rag_app.engines.decoder import BATCH, Decoder, cut
from rag_app.engines.native import Model, Refused
from rag_app.prompt import Message, render

if TYPE_CHECKING:
    from finetune.evaluation.candidates import Candidate
    from finetune.example import Example

WINDOW = 640
"""Tokens of llama.cpp's window but for answers: what is read and written to measure a speed fits."""
LONGEST = 1 << 20
Logits = npt.NDArray[np.float32]


class Subject(Protocol):
    """What is measured."""

    device: str
    computes: str | None
    """The type of PyTorch's numbers."""
    vocabulary: int
    begin: list[int]
    """What stands before every text: the token for it, or nothing."""

    def tokens(self, text: str) -> list[int]:
        """A plain text's, without blanks around it; nothing in it counts as a control token."""

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens that ask for an answer."""

    def read(self, tokens: Sequence[int]) -> None:
        """Evaluates a prompt from its beginning."""

    def write(self, count: int) -> None:
        """Evaluates so many tokens behind it, one by one, always the likeliest; what ends a reply does not."""

    def logits(self, tokens: Sequence[int]) -> Iterator[Logits]:
        """What follows each token, (tokens, vocabulary), in parts; gone with the next one."""

    def answers(self, examples: "Sequence[Example]", max_tokens: int) -> Iterator[tuple[int, str]]:
        """The greedy answers, each with its example's place."""


def load(candidate: "Candidate") -> Subject:
    """A candidate in memory.

    Raises:
        CheckpointInvalid, ModelInvalid, ModelNotFound, SettingInvalid: it cannot be loaded.
        Refused: llama.cpp cannot.
    """
    if candidate.engine == "llama.cpp":
        return LlamaCpp(Path(candidate.source.where, candidate.source.gguf or ""), candidate.lora)
    from finetune import methods
    from finetune.evaluation import adapters
    from rag_app.engines import checkpoints
    from rag_app.engines.layout import Layout

    if candidate.adapter and not candidate.precision:
        model, tokenizer = adapters.load(candidate.adapter, candidate.source)
    else:  # for an adapter, NF4 as QLoRA trains on it
        double = candidate.adapter is not None
        model, tokenizer = checkpoints.load(candidate.source, candidate.precision or "auto", "auto", double)
        if candidate.adapter:
            model = methods.load(model, candidate.adapter.folder).eval()
    return Transformers(model, Layout(candidate.name, tokenizer))


class _Decoder(Decoder):
    """One that tells the logits at every position, too."""

    def everywhere(self, tokens: Sequence[int]) -> Iterator[Logits]:
        """As `Subject.logits`."""
        self.forget()
        for at in range(0, len(tokens), BATCH):
            part = tuple(tokens[at : at + BATCH])
            self._batch.fill(part, at, 0, True)
            for place in range(len(part)):
                self._batch.struct.logits[place] = 1
            if code := self._api.llama_decode(self._context, self._batch.struct):
                raise Refused("failed", f"llama_decode gave {code}")
            pointer = self._api.llama_get_logits(self._context)
            yield np.ctypeslib.as_array(pointer, shape=(len(part), self._model.n_vocab))

    def close(self) -> None:
        """Gives the memory of the window back."""
        self._api.llama_free(self._context)


class LlamaCpp:
    """A GGUF file in llama.cpp, with a LoRA on it where one is given.

    Raises:
        Refused: llama.cpp cannot load it.
    """

    def __init__(self, file: Path, lora: Path | None) -> None:
        self._model = Model(str(file), LONGEST)
        self._most = self._model.n_ctx
        self._loras = [(str(lora), 1.0)] if lora else []
        self._decoder = self._open(WINDOW)
        self.device = "gpu" if self._model.api.llama_supports_gpu_offload() else "cpu"
        self.computes: str | None = None
        self.vocabulary, self.begin = self._model.n_vocab, self._model.begin

    def _open(self, window: int) -> _Decoder:
        self._model.n_ctx = min(window, self._most)
        return _Decoder(self._model, slots=1)

    def tokens(self, text: str) -> list[int]:
        """A plain text's, without blanks around it; nothing in it counts as a control token."""
        return self._model.tokens(text.strip(), special=False)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens that ask for an answer."""
        from rag_app.engines.worker import tokenise

        segments = render(messages, self._model.template, self._model.bos, self._model.eos)
        return [token for batch in tokenise(self._model, segments) for token in batch]

    def read(self, tokens: Sequence[int]) -> None:
        """Evaluates a prompt from its beginning."""
        self._decoder.forget()
        for _ in self._decoder.read(cut([(list(tokens), False)]), adapters=self._loras):
            pass

    def write(self, count: int) -> None:
        """Evaluates so many tokens behind it, one by one, always the likeliest; what ends a reply does not."""
        for _ in range(count):
            self._decoder.write(int(self._decoder.logits().argmax()))

    def logits(self, tokens: Sequence[int]) -> Iterator[Logits]:
        """What follows each token, (tokens, vocabulary), in parts; gone with the next one."""
        if self._loras:
            self.read(tokens[:1])  # puts them onto the window
        yield from self._decoder.everywhere(tokens)

    def answers(self, examples: "Sequence[Example]", max_tokens: int) -> Iterator[tuple[int, str]]:
        """The greedy answers, each with its example's place.

        Raises:
            RecordInvalid: a prompt leaves no room for an answer in the model's window.
        """
        prompts = [self.prompt(one.messages()) for one in examples]
        needed = max(map(len, prompts)) + max_tokens
        if needed > self._most:
            raise RecordInvalid(
                f"a prompt with its answer has {needed:,} tokens, and the model's window {self._most:,}: shorten it"
            )
        self._decoder.close()
        self._decoder = self._open(needed)
        for place, prompt in enumerate(prompts):
            self.read(prompt)
            yield place, self._reply(max_tokens)

    def _reply(self, most: int) -> str:
        written = b""
        for _ in range(most):
            token = int(self._decoder.logits().argmax())
            if token in self._model.ends:
                break
            written += self._model.piece(token)
            self._decoder.write(token)
        return written.decode("utf-8", "replace").strip()


class Transformers:
    """A model of Transformers or PEFT, with the layout of its tokenizer."""

    def __init__(self, model: Any, layout: Any) -> None:
        from finetune.export.engines import Transformers as Engine
        from rag_app.engines.forward import Forward

        self._model, self._layout, self._engine = model, layout, Engine(model, layout)
        # without PEFT's wrapper, which computes logits where none are asked for; what it changed in layers stays
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._forward, self._prompt = Forward(inner, frozenset()), cut([])
        self.device = _device(model)
        self.computes: str | None = str(model.dtype).removeprefix("torch.")
        self.vocabulary: int = model.config.get_text_config().vocab_size
        first = layout.tokenizer("a").input_ids
        self.begin = first[:1] if first[:1] == [layout.tokenizer.bos_token_id] else []

    def tokens(self, text: str) -> list[int]:
        """A plain text's, without blanks around it; nothing in it counts as a control token."""
        return list(self._layout.answer(text)[:-1])

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens that ask for an answer."""
        return self._engine.prompt(messages)

    def read(self, tokens: Sequence[int]) -> None:
        """Evaluates a prompt from its beginning."""
        import torch

        self._prompt = cut([(list(tokens), False)])
        with torch.inference_mode():
            self._forward.forget()
            for _ in self._forward.read(self._prompt, Decoding(), lambda: False):
                pass
        if self._model.device.type == "cuda":
            torch.cuda.synchronize()

    def write(self, count: int) -> None:
        """Evaluates so many tokens behind it, one by one, always the likeliest; what ends a reply does not."""
        import torch

        with torch.inference_mode():  # the first token is known without one more evaluation
            for _ in islice(self._forward.tokens(self._prompt, Decoding(), None, lambda: False), count + 1):
                pass

    def logits(self, tokens: Sequence[int]) -> Iterator[Logits]:
        """What follows each token, (tokens, vocabulary), in parts; gone with the next one."""
        found = self._engine.logits(tokens, len(tokens))
        for at in range(0, len(found), BATCH):
            yield found[at : at + BATCH]

    def answers(self, examples: "Sequence[Example]", max_tokens: int) -> Iterator[tuple[int, str]]:
        """The greedy answers, each with its example's place.

        Raises:
            RecordInvalid: a prompt leaves no room for an answer in the model's window.
        """
        from finetune.evaluation import generate

        return generate.stream(self._model, self._layout, examples, max_tokens=max_tokens)


def _device(model: Any) -> str:
    import torch

    return torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else str(model.device)
