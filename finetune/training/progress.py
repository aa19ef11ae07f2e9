"""One line of how far a run is: loss, tokens a second, time left, memory. Knows no trainer; it is told what happens."""

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from statistics import median
from typing import TYPE_CHECKING, Any, TextIO

from finetune.training import machine
from index import console

if TYPE_CHECKING:
    from tqdm import tqdm

EVERY = 30.0
"""Seconds between two lines where no terminal shows a bar."""
RATES = 20
"""Steps whose speeds the shown one is the median of: evaluations and checkpoints between steps do not count."""
SHOWN = {
    "loss": "loss",
    "score": "score",
    "question_answering_f1_answerable": "F1 answerable",
    "question_answering_abstention_f1": "F1 abstaining",
    "summarization_rougeL": "ROUGE-L",
    "text_generation_chrf": "chrF",
    "tool_use_exact": "exact calls",
}
"""What validation found that a line has room for, and how it is called there; the history has all of it."""
BAR = "step {n_fmt}/{total_fmt} |{bar}| {desc}"


class Line:
    """Progress on stderr: a bar on a terminal, else a line now and then. What validation finds is always a line.

    Args:
        total: steps of the whole run.
        metric: what picks the best checkpoint, which is shown in any case.
        stream: stderr by default.
        every: seconds between two lines.
        clock: seconds, from any zero.
    """

    def __init__(
        self,
        total: int,
        metric: str = "score",
        stream: TextIO | None = None,
        every: float = EVERY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shown = SHOWN if metric in SHOWN else {metric: metric, **SHOWN}
        self.total, self._stream = total, sys.stderr if stream is None else stream
        self._every, self._clock = every, clock
        self._terminal = self._stream.isatty()
        self._bar: tqdm[Any] | None = None
        self._loss: float | None = None
        self._began = self._told = self._last = clock()
        self._tokens = 0
        self._first: int | None = None
        self._done = 0
        self._rates: deque[float] = deque(maxlen=RATES)

    @property
    def tokens_per_second(self) -> float:
        """Of the last steps; 0 before the first."""
        return median(self._rates) if self._rates else 0.0

    @property
    def seconds_left(self) -> float:
        """At the speed so far, with all that happened between steps; 0 before the first."""
        done = self._done - (self._first or 0)
        return (self._last - self._began) / done * (self.total - self._done) if done > 0 else 0.0

    def step(self, step: int, tokens: int) -> None:
        """A step of the optimiser is done.

        Args:
            step: how many are now, those before a resumption included.
            tokens: how many this process has computed in all its steps.
        """
        now = self._clock()
        if self._first is None:
            self._first = step - 1
        if now > self._last:
            self._rates.append((tokens - self._tokens) / (now - self._last))
        self._last, self._tokens, self._done = now, tokens, step
        if self._terminal:
            self._draw()
        elif now - self._told >= self._every or step == self.total:
            self._told = now
            self._say(f"step {step:,} of {self.total:,}: {self._state()}")

    def log(self, step: int, logs: Mapping[str, Any]) -> None:
        """The trainer logs; keys are those of Transformers: `loss`, and after `eval_` what validation found."""
        if isinstance(loss := logs.get("loss"), float | int):
            self._loss = float(loss)
        found = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
        kept = [(shown, found.get(name)) for name, shown in self._shown.items()]
        numbers = [f"{shown} {value:.3f}" for shown, value in kept if isinstance(value, float | int)]
        if numbers:
            self._say(f"step {step:,}: validation {', '.join(numbers)}")

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _state(self) -> str:
        now, most = machine.used()
        loss = "" if self._loss is None else f"loss {self._loss:.3f}, "
        left = f"{_time(self.seconds_left)} left"
        return f"{loss}{self.tokens_per_second:,.0f} tokens/s, {left}, {now / 1e9:.1f} GB (at most {most / 1e9:.1f})"

    def _draw(self) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=self.total, initial=self._done, desc=self._state(), bar_format=BAR,
                             file=self._stream, leave=False, **console.size())  # fmt: skip
        self._bar.set_description_str(self._state(), refresh=False)
        self._bar.update(self._done - self._bar.n)

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        self._stream.write(f"{text}\n")
        self._stream.flush()
        if self._bar is not None:
            self._bar.refresh()


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
