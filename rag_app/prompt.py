"""Every prompt text of the project, and the one renderer that serving and training share.

A prompt is a list of messages; `render` lays them out with the model's own chat template, as segments: what the
template wrote, where control tokens count, and what people and documents wrote, where they are plain text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

PROMPT_VERSION = 2
"""Raised with every change to a text below; an adapter serves only the version it was trained with."""

NOT_FOUND = "The documents do not say."
"""The answer when the passages do not hold one."""

SYSTEM = f"You answer questions from documents. When they do not hold the answer, you say: {NOT_FOUND}"
DIRECT = "Using only the passages above, answer in one short sentence:"
BRIEFLY = "Using only the passages above, answer in as few words as possible:"
THINKING = (
    'Using only the passages above, think step by step, then write "Answer:" and the answer in one short sentence:'
)
ANSWER_MARK = "Answer:"
ECHO = "Using only the passages above"
"""A reply that comes to these words has begun to write the next question itself, and ends before them."""
REACT = (
    """You answer questions with tools. In each turn you write one thought, one action and its input, like this:

Thought: what to do next, and why
Action: the name of one tool
Input: what the tool is given

Then you are shown the observation. The tools:
{tools}
As soon as the observations hold the answer, use finish. When they do not hold it, finish with: """
    + NOT_FOUND
)
FIRST_THOUGHT = "I search the documents for the question."
NO_PASSAGES = "(no passages)"
PAL = f"""You answer questions from documents by writing a short Python program.
It takes its values from the passages and puts the answer into the variable `answer`. You write only the program.
When the passages do not hold the answer, it says: answer = "{NOT_FOUND}\""""
PROGRAM = "Using only the passages above, write a Python program that puts the answer into `answer`:"
STANDALONE = (
    "You rewrite the last question of a conversation as one question that can be understood without the conversation. "
    "You write only that question."
)
PAL_SHOT = (
    ["The workshop sells a chair for 45 euros and a table for 120 euros.", "The workshop opens at nine."],
    "What do four chairs and a table cost together?",
    "```python\nchair = 45\ntable = 120\nanswer = 4 * chair + table\n```",
)
WRITING = (
    "You write questions about a text. Each can be understood by somebody who does not see the text, and its answer is "
    "a few words copied from the text."
)
WRITE = "Write one question about the text above, and its answer:"
WRITING_SHOT = (
    "The workshop sells a chair for 45 euros and a table for 120 euros. It opens at nine.",
    'Question: How much does a table cost in the workshop?\nAnswer: "120 euros"',
)
Role = Literal["system", "user", "assistant"]
LINE_ENDS = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
INVISIBLE = "\\s\x00-\x1f\xad\u200b-\u200f\u2060-\u206f\ufeff"
BLANK_LINES = re.compile(f"\n[{INVISIBLE}]*\n")
LINE_MARKER = re.compile(r"^(\W*?)[\[［【]\W*?(\d+)\W*?[\]］】]", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of the prompt."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a rendered prompt."""

    text: str
    special: bool
    """Whether control tokens in `text` count as such; true only for what the chat template wrote."""


Turns = Sequence[tuple[str, str]]
"""Earlier questions of a conversation and their answers, oldest first."""


@dataclass(frozen=True, slots=True)
class Shot:
    """A worked example."""

    question: str
    passages: Sequence[str]
    answer: str


def question_prompt(
    question: str, passages: Sequence[str], history: Turns = (), shots: Sequence[Shot] = ()
) -> list[Message]:
    """The messages that ask `question` of `passages`, which are numbered from 1; with shots, for a few words."""
    # The question comes last, with the instruction beside it: on 60 questions of SQuAD's training part the bundled
    # model then answers in 23 tokens at F1 0.12, against 53 tokens at F1 0.09 with the instruction at the top.
    instruction = BRIEFLY if shots else DIRECT
    worked = [
        message
        for shot in shots
        for message in (
            Message("user", _asked(shot.question, shot.passages, instruction)),
            Message("assistant", plain(shot.answer)),
        )
    ]
    asked = Message("user", _asked(question, passages, instruction))
    return [Message("system", SYSTEM), *worked, *_turns(history), asked]


def instruction_prompt(instruction: str, context: str = "", history: Turns = ()) -> list[Message]:
    """The messages that give an instruction, with the text that it is about, if any, before it; no system message."""
    text = f"{plain(context)}\n\n{plain(instruction)}" if context.strip() else plain(instruction)
    return [*_turns(history), Message("user", text)]


def thinking_prompt(question: str, passages: Sequence[str], history: Turns = ()) -> list[Message]:
    """The messages that ask for reasoning first and then, behind ANSWER_MARK, the answer (chain of thought)."""
    return [Message("system", SYSTEM), *_turns(history), Message("user", _asked(question, passages, THINKING))]


def program_prompt(
    question: str, passages: Sequence[str], history: Turns = (), failed: Sequence[tuple[str, str]] = ()
) -> list[Message]:
    """The messages that ask for a program (PAL); `failed` are earlier programs with what went wrong."""
    shot_passages, shot_question, shot_program = PAL_SHOT
    messages = [
        Message("system", PAL),
        Message("user", _asked(shot_question, shot_passages, PROGRAM)),
        Message("assistant", shot_program),
        *_turns(history),
        Message("user", _asked(question, passages, PROGRAM)),
    ]
    for program, error in failed:
        messages += [
            Message("assistant", f"```python\n{program}\n```"),
            Message("user", f"That failed: {error}\nWrite the program again, corrected."),
        ]
    return messages


def react_prompt(
    question: str, tools: Sequence[tuple[str, str]], steps: Sequence[tuple[str, str]], history: Turns = ()
) -> list[Message]:
    """The messages of a run of thought, action and observation (ReAct, Yao et al. 2022).

    Args:
        question: what is asked.
        tools: name and description of each.
        steps: what the model wrote in each step, laid out by `react_step`, and the observation that followed.
        history: the conversation before.
    """
    described = "\n".join(f"- {name}: {' '.join(description.split())}" for name, description in tools)
    # No worked example: the bundled model takes what it says for a finding of its own run.
    asked = Message("user", f"Question: {_one_line(question)}")
    messages = [Message("system", REACT.format(tools=described)), *_turns(history), asked]
    for written, observation in steps:
        messages += [Message("assistant", written), _observed(observation)]
    return messages


def react_step(thought: str, tool: str, text: str) -> str:
    """A step in the one form that the model is shown."""
    given = f"\n```python\n{text.strip()}\n```" if tool == "python" else f" {text}"
    return f"Thought: {_one_line(thought)}\nAction: {tool}\nInput:{given}"


def standalone_prompt(question: str, history: Turns) -> list[Message]:
    """The messages that ask for a follow-up to be rewritten so that it stands alone."""
    told = "\n".join(f"Question: {_one_line(q)}\nAnswer: {_one_line(a)}" for q, a in history)
    return [Message("system", STANDALONE), Message("user", f"{told}\nLast question: {_one_line(question)}")]


def writing_prompt(passage: str) -> list[Message]:
    """The messages that ask for a question about a passage, and for its answer, as WRITING_SHOT has them."""
    text, written = WRITING_SHOT
    asked = [Message("user", f"{plain(one)}\n\n{WRITE}") for one in (text, passage)]
    return [Message("system", WRITING), asked[0], Message("assistant", written), asked[1]]


def numbered(passages: Sequence[str], first: int = 1) -> str:
    """Passages under their numbers, a blank line between two.

    Only this function writes a number in brackets at the head of a line, or a blank line: in a passage itself the
    brackets become round and blank lines vanish, so no document can pass for several, or for the words around it.
    """
    return "\n\n".join(f"[{n}] {plain(passage)}" for n, passage in enumerate(passages, first)) or NO_PASSAGES


def plain(text: str) -> str:
    """A text that cannot be mistaken for the layout of the prompt around it."""
    return LINE_MARKER.sub(r"\1(\2)", BLANK_LINES.sub("\n", LINE_ENDS.sub("\n", text).strip()))


def _asked(question: str, passages: Sequence[str], instruction: str) -> str:
    return f"{numbered(passages)}\n\n{instruction} {plain(question)}"


def _turns(history: Turns) -> list[Message]:
    pairs = ((Message("user", plain(q)), Message("assistant", plain(a))) for q, a in history)
    return [message for pair in pairs for message in pair]


def _observed(observation: str) -> Message:
    return Message("user", f"Observation: {observation}")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def render(messages: Sequence[Message], template: str, bos: str = "", eos: str = "") -> list[Segment]:
    """Lays out messages by a chat template (Jinja, as in GGUF and Hugging Face files), ready for the answer.

    A template that knows no system role gets the system text at the head of the first user message.

    Raises:
        ValueError: the template cannot be rendered.
    """
    try:
        return _render(messages, template, bos, eos)
    except ValueError:
        if len(messages) < 2 or messages[0].role != "system":
            raise
        first = Message("user", f"{messages[0].content}\n\n{messages[1].content}")
        return _render([first, *messages[2:]], template, bos, eos)


def _render(messages: Sequence[Message], template: str, bos: str, eos: str) -> list[Segment]:
    # Marks stand in for the contents, so that their places in the layout are known. They are private-use
    # characters, which a template has no reason to write.
    marks = [f"\ue000{number}\ue001" for number in range(len(messages))]
    shown = [{"role": m.role, "content": mark} for m, mark in zip(messages, marks, strict=True)]
    try:
        laid_out: str = _compiled(template).render(
            messages=shown, add_generation_prompt=True, bos_token=bos, eos_token=eos, tools=None
        )
    except Exception as error:  # a template is a program that came with the model: it may raise anything
        raise ValueError(f"the chat template cannot be rendered: {error}") from error
    pieces = re.split("\ue000(\\d+)\ue001", laid_out)
    if set(pieces[1::2]) != set(map(str, range(len(messages)))):
        raise ValueError("the chat template cannot be rendered: it leaves a message out")
    segments = []
    for place, piece in enumerate(pieces):
        is_content = place % 2 == 1
        text = messages[int(piece)].content if is_content else piece
        if text:
            segments.append(Segment(text, special=not is_content))
    return segments


def closing(template: str, bos: str = "", eos: str = "") -> str:
    """What a chat template writes behind an answer, its stop token first; '' where it writes nothing.

    Raises:
        ValueError: the template cannot be rendered.
    """
    answer = "\ue000answer\ue001"
    shown = [{"role": "user", "content": "question"}, {"role": "assistant", "content": answer}]
    try:
        laid_out: str = _compiled(template).render(
            messages=shown, add_generation_prompt=False, bos_token=bos, eos_token=eos, tools=None
        )
    except Exception as error:  # a template is a program that came with the model: it may raise anything
        raise ValueError(f"the chat template cannot be rendered: {error}") from error
    return laid_out.rpartition(answer)[2]


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    # The settings of transformers' apply_chat_template, so that both lay out the same text.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    return environment.from_string(template)
