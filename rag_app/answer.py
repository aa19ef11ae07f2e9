"""What an answer is, and the events that it arrives by; the terminal, the page and the server share them. Data only."""

from dataclasses import asdict, dataclass, field
from typing import Any

from index import Hit
from rag_app.citations import Citation


@dataclass(frozen=True, slots=True)
class Query:
    """What is searched for."""

    text: str
    rewritten: bool
    """Whether it differs from the question, which does not stand alone."""


@dataclass(frozen=True, slots=True)
class Found:
    """A search has ended."""

    hits: list[Hit]


@dataclass(frozen=True, slots=True)
class Waiting:
    """Others asked before."""

    place: int
    """How many replies are made before this one, at least 1."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The model is reading; sent now and then, so that the answer can be stopped meanwhile."""


@dataclass(frozen=True, slots=True)
class Thinking:
    """The next piece of what the model writes before its answer: reasoning, an action, a program."""

    text: str


@dataclass(frozen=True, slots=True)
class Step:
    """One turn of thought, action and observation."""

    number: int
    """From 1."""
    thought: str
    action: str
    """Name of the tool; empty for mere thought."""
    input: str
    observation: str
    error: bool = False
    """Whether the observation says that the action failed."""


@dataclass(frozen=True, slots=True)
class StepTaken:
    """A step is complete."""

    step: Step


@dataclass(frozen=True, slots=True)
class Token:
    """The next piece of the answer, markers included."""

    text: str


@dataclass(frozen=True, slots=True)
class Cited:
    """A sentence of the answer has been tied to a passage; its marker is in the tokens before."""

    citation: Citation


@dataclass
class Answer:
    """An answer, complete or as far as it came; the JSON form of `rag-app ask`."""

    question: str
    answer: str = ""
    strategy: str = "zero-shot"
    query: str = ""
    """What was searched for; the question itself where that stands alone."""
    steps: list[Step] = field(default_factory=list)
    citations: list[Citation] = field(default_factory=list)
    hits: list[Hit] = field(default_factory=list)
    """Everything found, best first; citation n is of hit n."""
    refused: bool = False
    """Whether the reply is that the documents do not hold the answer."""
    confidence: float = 0.0
    """How sure the retrieval is that a passage has to do with the question, 0 to 1; see confidence.py."""
    dropped: int = 0
    """How many of the hits, from the last, did not fit the model's window."""
    history_dropped: int = 0
    """How many earlier questions with their answers, from the oldest, did not fit."""
    finish_reason: str = ""
    """'stop', 'length' (cut at the most tokens allowed), 'repeated' (ended where it began to repeat itself), 'steps' or
    'budget' (a run of steps ended at its limit, with the best answer so far) or 'refused' (not put to the model)."""
    notes: list[str] = field(default_factory=list)
    """What a reader should know of how the answer came about, a line each."""
    model: str = ""
    adapters: list[str] = field(default_factory=list)
    """What the model was changed by: NAME, or NAME:WEIGHT."""
    prompt_version: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    """Options and decoding that differ from their defaults."""
    usage: dict[str, int] = field(
        default_factory=lambda: {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0}
    )
    timings: dict[str, float] = field(default_factory=dict)
    """Milliseconds: load_ms (encoder and model, nearly 0 when they are loaded), retrieve_ms (after loading),
    first_token_ms (from the finished prompt to the first token), total_ms (everything)."""

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Done:
    """The answer is complete."""

    answer: Answer


Event = Query | Found | Waiting | Reading | Thinking | StepTaken | Token | Cited | Done
