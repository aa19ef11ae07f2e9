"""Several models measured on the same tokens, each in a process of its own, one after the other. Shows nothing."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

from finetune.evaluation.candidates import Candidate
from finetune.evaluation.texts import Texts
from finetune.example import Example
from index.errors import RagError

WRITTEN, ROUNDS = 64, 3
"""Tokens that are written for a model's speed, and how often; the median counts."""
SHORTEST = 8
"""Tokens of a piece of text: more are not sent than are needed then."""
Progress = Callable[[str, int, int], None]
Event = dict[str, Any]


@dataclass
class Row:
    """A model and what was measured of it; None where it was not. Sizes in bytes."""

    name: str
    kind: str | None = None
    """Type of the weights, and the method of an adapter on them."""
    engine: str | None = None
    device: str | None = None
    computes: str | None = None
    """What PyTorch computes in."""
    size: int | None = None
    """On the disk."""
    memory: int | None = None
    """Most that its process had resident, mapped files included, when it had read and written for the speeds."""
    memory_before: int | None = None
    """What of it was there before the model was loaded: Python and libraries."""
    gpu_memory: int | None = None
    """Most that PyTorch had on the GPU."""
    load_seconds: float | None = None
    perplexity: float | None = None
    divergence: float | None = None
    """Mean KL(reference || this), nats."""
    tokens: int | None = None
    """That perplexity and divergence are of."""
    prompt_tokens: int | None = None
    """Of the prompt that was read for the speed."""
    prompt_tokens_per_second: float | None = None
    generation_tokens_per_second: float | None = None
    score: float | None = None
    """As `rag-finetune evaluate` has it, 0 to 1."""
    score_interval: tuple[float, float] | None = None
    scores: dict[str, Any] | None = None
    """By task and metric."""
    failed: dict[str, str] = field(default_factory=dict)
    """What could not be measured, and why."""

    @property
    def measured(self) -> bool:
        """Whether anything but its being there is known."""
        return any(value is not None for value in (self.prompt_tokens_per_second, self.perplexity, self.score))


@dataclass
class Comparison:
    """Models beside each other, in the order given."""

    rows: list[Row]
    reference: str | None = None
    """The name of the model that divergences are from."""
    interrupted: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compare(
    names: Sequence[str],
    found: Sequence[Candidate | RagError],
    texts: Texts,
    examples: Sequence[Example] = (),
    *,
    tokens: int,
    written: int = WRITTEN,
    rounds: int = ROUNDS,
    max_tokens: int = 128,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Measures models; one that fails keeps no other from being measured. Ctrl-C ends with what is done.

    The first that is not quantised is the reference, or the first one; where it fails, the next.

    Args:
        names: of the models.
        found: what they stand for, or why they stand for nothing.
        texts: for perplexity and divergence.
        examples: for the score; it may be none.
        tokens: that are judged at most.
        written: tokens that the speed of writing is of.
        rounds: speeds are the median of so many.
        max_tokens: of an answer.
        seed: of the score's interval.
        progress: told a model's name with what is done of it, as in 'base: speed'.

    Raises:
        KeyboardInterrupt: nothing was measured when Ctrl-C came.
    """
    rows = [
        Row(name, failed={"loading": str(one)} if isinstance(one, RagError) else {})
        for name, one in zip(names, found, strict=True)
    ]
    made, reference = Comparison(rows), None
    pieces = [one if isinstance(one, str) else one.as_dict() for one in texts.drawn(max(1, tokens // SHORTEST))]
    request = {
        "pieces": pieces, "tokens": tokens, "written": written, "rounds": rounds, "max_tokens": max_tokens,
        "examples": [one.as_dict() for one in examples],
    }  # fmt: skip
    usable = [(row, one) for row, one in zip(rows, found, strict=True) if isinstance(one, Candidate)]
    try:
        with tempfile.TemporaryFile() as file:  # without a name: gone with the last process, whatever ends it
            for row, _ in sorted(usable, key=lambda pair: not _exact(pair[1])):
                told = _measure(row, {**request, "reference": reference}, file, examples, seed, progress)
                if told and reference is None:
                    made.reference, reference = row.name, told
    except KeyboardInterrupt:
        if not any(row.measured for row in rows):
            raise
        made.interrupted = True
        made.reference = made.reference or next((row.name for row in rows if row.divergence is not None), None)
        for row in rows:
            if not row.measured:
                row.failed.setdefault("loading", "interrupted before it was measured")
    return made


def brief(name: str) -> str:
    """The end of a model's name, where a path would leave a progress bar no room."""
    return name.rstrip("/").rpartition("/")[2] or name


def _exact(candidate: Candidate) -> bool:
    try:
        return candidate.exact
    except (RagError, OSError):  # told by its own process
        return False


def _measure(
    row: Row, request: Event, file: BinaryIO, examples: Sequence[Example], seed: int, progress: Progress | None
) -> Event | None:
    """Fills in a row; gives what others need to know if the model is the reference now."""
    reference, answers = None, dict[int, str]()
    with closing(_events({**request, "name": row.name}, file)) as events:
        for event in events:
            kind = event.pop("event")
            if kind == "progress" and progress:
                progress(f"{brief(row.name)}: {event['stage']}", event["done"], event["total"])
            elif kind == "found":
                reference = event.pop("reference", reference)
                for name, value in event.items():
                    setattr(row, name, value)
            elif kind == "answer":
                answers[event["place"]] = event["text"]
            elif kind == "failed":
                row.failed[event["stage"]] = event["message"]
    if examples and len(answers) == len(examples):
        _score(row, examples, [answers[n] for n in range(len(examples))], seed)
    return reference


def _score(row: Row, examples: Sequence[Example], answers: Sequence[str], seed: int) -> None:
    from finetune.evaluation.evaluate import score
    from finetune.evaluation.tasks import MAIN

    found = score(examples, answers, seed)
    row.score, row.scores = round(found.score, 6), found.as_dict()["tasks"]
    below = above = 0.0
    for task, metrics in found.metrics.items():  # of independent tasks, errors add up by their squares
        name, scale = MAIN[task]
        value, interval = metrics[name].value, metrics[name].interval(seed)
        if value is not None and interval:
            below += ((value - interval[0]) / scale) ** 2
            above += ((interval[1] - value) / scale) ** 2
    count = len(found.metrics)
    row.score_interval = round(found.score - below**0.5 / count, 6), round(found.score + above**0.5 / count, 6)


def _events(request: Event, file: BinaryIO) -> Generator[Event, None, None]:
    """What the process tells, up to its end; how that came where it was not its own."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "finetune.evaluation.measuring"],  # -P: not what the current folder holds
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=(file.fileno(),),
        start_new_session=True,  # Ctrl-C is for this process, which then ends the other
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        text=True,
        encoding="utf-8",
    )
    assert process.stdin
    assert process.stdout
    last: Event = {"event": "progress", "stage": "loading"}
    try:
        with suppress(BrokenPipeError):  # how it ended says more
            process.stdin.write(json.dumps({**request, "file": file.fileno()}) + "\n")
            process.stdin.flush()
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "done":
                return
            last = event if event["event"] == "progress" else last
            yield event
        yield {"event": "failed", "stage": last["stage"], "message": _ended(process.wait())}
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(BrokenPipeError):
                pipe.close()


def _ended(code: int) -> str:
    why = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    memory = "; it may have run out of memory" if code == -signal.SIGKILL else ""
    return f"the process that measured it ended ({why}{memory})"
