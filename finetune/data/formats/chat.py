"""Conversations: OpenAI's `messages` and ShareGPT's `conversations`, with tools or without.

Every answer is an example, with what was said before as its history; where tools are given, so is every call, in the
form of ReAct (finetune.data.formats.tools). A system message stands before the next question, for the prompts are our
own. What an assistant says before anybody asked is left out, and so is a question that nobody answered.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from finetune.config import Data
from finetune.data.formats.fields import Unusable, digest, name_of, optional
from finetune.data.formats.tools import NO_CALL, Call, Tools, calls, described, finished, step
from finetune.example import Example

Kind = Literal["system", "user", "assistant", "call", "observation"]
ROLES: dict[str, Kind] = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant", "bing": "assistant", "model": "assistant",
    "bot": "assistant", "function_call": "call", "tool_call": "call", "observation": "observation",
    "tool": "observation", "function": "observation", "tool_response": "observation",
}  # fmt: skip
"""What each role is, as the sets that are around name it."""
MOST_TURNS = 1000
"""Of a conversation: each answer carries all that was said before."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One thing that was said or done."""

    kind: Kind
    text: str = ""
    call: Call = NO_CALL
    trained: bool = True
    """Whether it is to be learnt; OpenAI's `weight: 0` says that it is not."""
    answers: str = ""
    """observation: the id of its call, where calls have one."""


def chat(row: Mapping[str, Any], data: Data) -> list[Example]:
    """The examples of a conversation, in its order; all are of one document.

    Raises:
        Unusable: a turn cannot be read, or there is no answer in it.
    """
    said = row.get("messages", row.get("conversations"))
    if not isinstance(said, list) or not all(isinstance(one, dict) for one in said):
        raise Unusable("'messages' or 'conversations' is no list of objects: write one")
    if len(said) > MOST_TURNS:
        raise Unusable(f"more than {MOST_TURNS:,} turns: cut the conversation in several")
    turns = [turn for one in said for turn in _turns(one)]
    tools = described(row)
    if not tools and any(turn.kind == "call" for turn in turns):
        raise Unusable("a tool is called, and there are no 'tools': describe them there")
    name = name_of(row, *(f"{turn.kind} {turn.text} {turn.call}" for turn in turns))
    found = list(_examples(_observed(_joined(turns)), tools, data))
    if not found:
        raise Unusable("no question with an answer: write one, or remove the conversation")
    return [replace(one, id=f"{name}/{number}", document=name) for number, one in enumerate(found, 1)]


def _turns(said: Mapping[str, Any]) -> Iterator[Turn]:
    role = said.get("role", said.get("from"))
    kind = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if kind is None:
        raise Unusable(f"the role {role!r} is none of {', '.join(ROLES)}")
    content = _content(said)
    trained = said.get("weight") != 0
    if kind == "call":
        yield from (Turn("call", call=call, trained=trained) for call in calls(content))
        return
    called = list(calls(said.get("tool_calls") or said.get("function_call") or [])) if kind == "assistant" else []
    if content or not called:
        answers = said.get("tool_call_id")
        yield Turn(kind, content, trained=trained, answers=answers if isinstance(answers, str) else "")
    yield from (Turn("call", call=call, trained=trained) for call in called)


def _content(said: Mapping[str, Any]) -> str:
    """The text of a turn, which may come in parts."""
    content = said.get("content", said.get("value"))
    if not isinstance(content, list):
        return optional({"content": content}, "content")
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        raise Unusable("a message holds more than text: take pictures and the like out")
    return "\n".join(part["text"] for part in content).strip()


def _joined(turns: list[Turn]) -> list[Turn]:
    """With one turn for several of the same person in a row."""
    found: list[Turn] = []
    for turn in turns:
        if found and turn.kind == found[-1].kind and turn.kind in ("system", "user", "assistant"):
            last = found.pop()
            turn = replace(turn, text=f"{last.text}\n\n{turn.text}".strip())
        found.append(turn)
    return found


def _observed(turns: list[Turn]) -> list[Turn]:
    """With each call's observation right behind it, for there is one call in a step."""
    found: list[Turn] = []
    for turn in turns:
        place = len(found)
        if turn.kind == "observation":
            open_calls = [
                n for n, one in enumerate(found)
                if one.kind == "call" and (n + 1 == len(found) or found[n + 1].kind != "observation")
                and (not turn.answers or not one.call.id or one.call.id == turn.answers)
            ]  # fmt: skip
            if not open_calls:
                raise Unusable("an observation without a call: write the call before it")
            place = open_calls[0] + 1
        found.insert(place, turn)
    return found


def _examples(turns: list[Turn], tools: Tools, data: Data) -> Iterator[Example]:
    history: list[tuple[str, str]] = []
    steps: list[tuple[str, str]] = []
    question = thought = ""
    for turn, after in pairwise([*turns, Turn("user")]):
        if turn.kind in ("system", "user"):
            question = f"{'' if steps else question}\n\n{turn.text}".strip()  # after steps, it was given up
            steps = []
        elif not question:
            continue
        elif turn.kind == "observation":
            steps[-1] = (steps[-1][0], turn.text or "(no result)")
        elif turn.kind == "call":
            written = step(turn.call, tools, thought)
            if turn.trained:
                yield _example(question, written, history, tools, steps, data)
            steps.append((written, "(no result)"))
            thought = ""
        elif after.kind == "call":
            thought = turn.text
        else:
            if turn.trained:
                yield _example(question, finished(turn.text) if tools else turn.text, history, tools, steps, data)
            history.append((question, turn.text))
            question, steps = "", []


def _example(
    question: str, answer: str, history: list[tuple[str, str]], tools: Tools, steps: list[tuple[str, str]], data: Data
) -> Example:
    task = "tool_use" if tools else data.task or "text_generation"
    given = tuple(history), tuple(steps)
    return Example(digest(question, answer), task, question, answer, history=given[0], steps=given[1], tools=tools)
