"""The process in which one model is measured: a request comes in on stdin, events go out on stdout, JSON lines.

    request {name, pieces, tokens, written, rounds, max_tokens, examples, reference, file}
                          pieces: texts or examples. Speeds are of `written` tokens, the median of `rounds`.
                          reference: {tokens, vocabulary} of it; null where this model is to be it.
                          file: number of an open file, for the reference's distributions
    progress {stage, done, total}
    found {…}             values, as soon as they are known
    answer {place, text}
    failed {stage, message}

It lives apart so that its peak of memory is the model's own, and a crash ends one model. It ends when stdin closes.
"""

import hashlib
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from statistics import median
from typing import Any, TextIO

from finetune.evaluation import candidates, divergence, subjects
from finetune.evaluation.candidates import Candidate
from finetune.evaluation.subjects import Subject
from finetune.example import Example, example_of
from finetune.training.machine import resident
from rag_app.engines.native import Refused

LENGTH = 512
"""Tokens of a window, and of the prompt that is read for its speed."""
Event = dict[str, Any]


class Measuring:
    """One model and what is asked of it."""

    def __init__(self, request: Event, tell: Callable[[Event], None]) -> None:
        self._request, self._tell = request, tell

    def run(self) -> None:
        """Measures everything; what fails is told, and the rest goes on."""
        try:
            subject = self._loaded()
        except Exception as error:  # of the system, of several libraries
            return self._failed("loading", error)
        stages = {"speed": self._speed, "perplexity": self._likelihood, "answers": self._answers}
        for stage, measure in stages.items():
            try:
                measure(subject)
            except Exception as error:
                self._failed(stage, error)

    def _failed(self, stage: str, error: Exception) -> None:
        self._tell({"event": "failed", "stage": stage, "message": explained(error)})

    def _found(self, **values: Any) -> None:
        self._tell({"event": "found", **values})

    def _progress(self, stage: str, done: int, total: int) -> None:
        self._tell({"event": "progress", "stage": stage, "done": done, "total": total})

    def _loaded(self) -> Subject:
        self._progress("loading", 0, 1)
        candidate = candidates.find(self._request["name"])
        libraries(candidate)
        before, began = resident()[0], time.perf_counter()
        subject = subjects.load(candidate)
        self._found(
            kind=candidate.kind, engine=candidate.engine, device=subject.device, computes=subject.computes,
            size=candidate.size(), memory_before=before, load_seconds=round(time.perf_counter() - began, 2),
        )  # fmt: skip
        self._windows = divergence.windows(
            (_row(subject, piece) for piece in self._request["pieces"]), LENGTH, self._request["tokens"]
        )
        return subject

    def _speed(self, subject: Subject) -> None:
        """Reading and writing, and the memory that they take."""
        prompt = [token for window in self._windows for token in window][:LENGTH]
        subject.read(prompt)
        subject.write(4)
        reading, writing = list[float](), list[float]()
        written, rounds = self._request["written"], self._request["rounds"]
        for done in range(rounds):
            self._progress("speed", done, rounds)
            began = time.perf_counter()
            subject.read(prompt)
            between = time.perf_counter()
            subject.write(written)
            reading.append(len(prompt) / (between - began))
            writing.append(written / (time.perf_counter() - between))
        self._found(
            prompt_tokens=len(prompt), prompt_tokens_per_second=round(median(reading), 2),
            generation_tokens_per_second=round(median(writing), 2), memory=resident()[1], gpu_memory=on_gpu(),
        )  # fmt: skip

    def _likelihood(self, subject: Subject) -> None:
        """Perplexity and, as far as the reference has the same tokens, the divergence from it."""
        told = {"tokens": _digest(self._windows), "vocabulary": subject.vocabulary}
        reference = self._request["reference"]
        with os.fdopen(self._request["file"], "r+b", closefd=False) as file:
            kept = divergence.Kept(file, subject.vocabulary)
            if reference is None:
                try:
                    kept.check_room(sum(len(window) - 1 for window in self._windows))
                except OSError as error:
                    self._failed("KL", error)
                    return self._judged(subject)
                self._judged(subject, written=kept)
                file.flush()
                return self._found(divergence=0.0, reference=told)
            if reference == told:
                return self._judged(subject, compared=kept)
        same = reference["tokens"] == told["tokens"]
        what = "knows another number of tokens than" if same else "splits the text into other tokens than"
        self._tell({"event": "failed", "stage": "KL", "message": f"it {what} the reference"})
        self._judged(subject)

    def _judged(self, subject: Subject, **kept: divergence.Kept) -> None:
        total = len(self._windows)
        self._progress("perplexity", 0, total)
        for done, found in enumerate(divergence.judge(subject, self._windows, **kept), 1):  # noqa: B007  (the last counts)
            self._progress("perplexity", done, total)
        if not math.isfinite(found.perplexity):
            raise ValueError("its logits are no finite numbers")
        self._found(perplexity=found.perplexity, divergence=found.divergence, tokens=found.positions)

    def _answers(self, subject: Subject) -> None:
        examples = [_example(row) for row in self._request["examples"]]
        if not examples:
            return
        self._progress("answers", 0, len(examples))
        for done, (place, text) in enumerate(subject.answers(examples, self._request["max_tokens"]), 1):
            self._tell({"event": "answer", "place": place, "text": text})
            self._progress("answers", done, len(examples))


def explained(error: Exception) -> str:
    """A line for a person."""
    from finetune.evaluation import adapters
    from index.errors import RagError
    from rag_app.engines.outside import one_line

    if isinstance(error, Refused):
        return f"{one_line(error.args[-1])}: the file is damaged, or of a kind that this llama.cpp does not know"
    if isinstance(error, RagError):
        return one_line(adapters.reworded(error, "name another"), 400)
    if isinstance(error, OSError) and error.errno == 28:
        return f"{one_line(error.strerror)}: make room there, set $TMPDIR to another folder, or give a smaller --tokens"
    return one_line(f"{type(error).__name__}: {error}")


def libraries(candidate: Candidate) -> None:
    """Loads what the model's memory is measured without."""
    if candidate.engine == "llama.cpp":
        import llama_cpp  # noqa: F401
    else:
        from transformers import AutoModelForCausalLM, PreTrainedModel  # noqa: F401


def on_gpu() -> int | None:
    """Bytes of the GPU's memory that PyTorch had at most; None where it uses none."""
    torch = sys.modules.get("torch")
    return torch.cuda.max_memory_allocated() if torch and torch.cuda.is_initialized() else None


def _row(subject: Subject, piece: str | Event) -> list[int]:
    """Tokens of a text, or of an example's prompt and answer, whose end counts where it is too long."""
    if isinstance(piece, str):
        return [*subject.begin, *subject.tokens(piece)]
    example = _example(piece)
    row = [*subject.prompt(example.messages()), *subject.tokens(example.answer)]
    return row if len(row) <= LENGTH else [row[0], *row[1 - LENGTH :]]


def _example(row: Event) -> Example:
    return example_of(row, "request")


def _digest(windows: list[list[int]]) -> str:
    return hashlib.sha256(json.dumps(windows).encode()).hexdigest()


def _main(out: TextIO) -> None:
    lock = threading.Lock()

    def tell(event: Event) -> None:
        with lock:
            out.write(json.dumps(event) + "\n")
            out.flush()

    request = json.loads(sys.stdin.readline())
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    Measuring(request, tell).run()
    tell({"event": "done"})
    os._exit(0)  # without taking leave of each library, some of which crash then


if __name__ == "__main__":
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")  # packages print to stdout at will
    os.dup2(2, 1)
    _main(events)
