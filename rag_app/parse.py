"""Reads what a model writes in a step, in the form that the prompt teaches or near it. Text in, action out; no tools.

    Thought: one line
    Action: search
    Input: okapi tongue

Time is linear in the text: no pattern goes over the same characters twice (`++` and `*+` give nothing back).
"""

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

LONGEST_THOUGHT = 1000
"""Characters kept of a thought."""
MOST_OBJECTS = 8
"""Opening braces at which JSON is looked for."""
OWN = frozenset({"search", "lookup", "calculator", "python", "finish"})
"""The standard tools: each takes one text and does nothing without. Of others only the tool knows."""
MANY_LINES = frozenset({"python", "finish"})
"""Tools whose input may go over several lines without a fence."""
MEANT = {"answer": "finish", "final_answer": "finish", "final": "finish"}
NOTHING = frozenset({"none", "no", "n/a", "null", "nothing"})

LABEL = re.compile(
    r"[ \t]*+(?:\d{1,3}[.)][ \t]*+)?+(?:[#>*_-]++[ \t]*+)?+"  # of a list, a heading, bold letters
    r"(thought|reasoning|action[ _]?input|tool[ _]?input|input|action|tool|observation|final[ _]answer|answer)"
    r"[ \t]*+\d*+[*_]*+[ \t]*+[:：]\**+[ \t]*+",
    re.IGNORECASE,
)
KINDS = {
    "reasoning": "thought",
    "actioninput": "input",
    "toolinput": "input",
    "tool": "action",
    "finalanswer": "answer",
}
CALL = re.compile(r"[\s*_`'\"]*+([A-Za-z_][\w-]*+)[`'\"*]*+[ \t]*+([\[(:]?)")
NAMED = re.compile(r"[A-Za-z_]\w*+[ \t]*+=[ \t]*+(?=['\"])")
CODE = re.compile(r"^(?:(?:def|for|while|if|import|from|return|print)\b|[A-Za-z_][\w.,\[\]]*+[ \t]*+[-+*/]?=)", re.M)
QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»"}
CLOSING = {"[": "]", "(": ")"}


@dataclass(frozen=True, slots=True)
class Action:
    """What a model wants to do next."""

    thought: str
    """One line, maybe empty."""
    tool: str
    """Its name as the program knows it; as the model wrote it where there is none such; empty where none is named."""
    input: str
    """Without quotes and fences."""
    problem: str
    """Why it cannot be done, one line for the model; empty when it can."""


@dataclass(frozen=True, slots=True)
class _Part:
    kind: str
    """'thought', 'action', 'input', 'answer', 'observation', or '' before the first label."""
    text: str


@dataclass(frozen=True, slots=True)
class _Found:
    tool: str
    input: str
    thought: str = ""


def parse_step(text: str, tools: Collection[str]) -> Action:
    """The first action of a reply, in whichever form; an answer without an action is the action `finish`.

    Args:
        text: the reply; what stands after an observation, which only the model can have invented, counts for nothing.
        tools: names of those there are.
    """
    parts = _parts(_reply(text))
    for place in range(len(parts)):
        found = _found(parts, place, tools)
        if found:
            thoughts = [p.text for p in parts[:place] if p.kind in ("thought", "")]
            return _checked(_one_line(" ".join([*thoughts, found.thought])), found, tools)
    thought = _one_line(" ".join(p.text for p in parts if p.kind in ("thought", "")))
    return Action(thought, "", "", f"no action: write the lines 'Action:' with one of {', '.join(tools)}, and 'Input:'")


def program_of(text: str) -> str:
    """The program in a reply: its first fenced block, else the text from the first line that looks like code."""
    text = text.replace("\r\n", "\n")
    block = _fenced(text)
    if block is not None:
        return block
    begun = CODE.search(text)
    return (text[begun.start() :] if begun else text).strip().strip("`")


def _reply(text: str) -> str:
    """The text with plain line ends, without the reasoning that some models write first."""
    head, end, reply = text.rpartition("</think>")
    if end and (head.lstrip().startswith("<think>") or not any(map(LABEL.match, head.split("\n")))):
        text = reply
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _parts(text: str) -> list[_Part]:
    """The text cut at its labels, up to the first observation after an action; labels in a closed fence are code."""
    lines = text.split("\n")
    fences = [place for place, line in enumerate(lines) if line.count("```") % 2]
    opened = set(fences[: len(fences) // 2 * 2])  # one that is never closed hides nothing
    parts: list[tuple[str, list[str]]] = [("", [])]
    inside = acted = False
    for place, line in enumerate(lines):
        label = None if inside else LABEL.match(line)
        inside ^= place in opened
        if not label:
            parts[-1][1].append(line)
            continue
        name = re.sub("[ _]", "", label[1].lower())
        kind = KINDS.get(name, name)
        acted = acted or kind in ("action", "answer")
        if kind == "observation" and acted:
            break
        parts.append((kind, [line[label.end() :]]))
    return [_Part(kind, "\n".join(lines).strip()) for kind, lines in parts]


def _found(parts: Sequence[_Part], place: int, tools: Collection[str]) -> _Found | None:
    part = parts[place]
    if part.kind == "answer":
        return _Found("finish", _cleaned("finish", part.text))
    if part.kind == "action":
        return _named(parts, place, tools)
    if part.kind in ("thought", ""):
        return _from_json(part.text, tools) or _from_call(part.text, tools)
    return None


def _named(parts: Sequence[_Part], place: int, tools: Collection[str]) -> _Found | None:
    """What the line after 'Action:' says; the input stands there too, or after its own label."""
    text = parts[place].text
    found = _from_json(text, tools)
    if found:
        return found
    line = text.partition("\n")[0]
    call = CALL.match(text)
    name, after, opening = (call[1], text[call.end() :], call[2]) if call else (_unquoted(line), text[len(line) :], "")
    labelled = _labelled(parts, place, name)
    if name.lower() in NOTHING:
        return None
    tool = _known(_unquoted(line), tools) or _known(name, tools)
    if not tool and labelled:  # "I will use search"
        tool = next(filter(None, (_known(word, tools) for word in re.findall(r"[\w-]+", line[:200]))), "")
    if not tool:
        return _Found(_one_line(name)[:60], _cleaned("", labelled))
    inline = _inner(after, opening) if opening in CLOSING else after
    return _Found(tool, _cleaned(tool, labelled) or _cleaned(tool, inline))


def _labelled(parts: Sequence[_Part], place: int, name: str) -> str:
    """The input of an action, from the labelled parts that follow it."""
    kinds = ("input", "answer") if name.lower() == "finish" else ("input",)
    for follower in range(place + 1, len(parts)):
        if parts[follower].kind in kinds:
            return parts[follower].text
        if parts[follower].kind != "thought":
            break
    return ""


def _from_json(text: str, tools: Collection[str]) -> _Found | None:
    """An action as a JSON object, such as {"action": "search", "action_input": "okapi"}."""
    start = -1
    for _ in range(MOST_OBJECTS):
        start = text.find("{", start + 1)
        if start < 0:
            return None
        value, _end = _decoded(text[start:])
        if not isinstance(value, dict):
            continue
        name = next((value[key] for key in ("action", "tool", "name") if isinstance(value.get(key), str)), "")
        keys = ("action_input", "input", "arguments", "args", "parameters")
        given = next((value[key] for key in keys if value.get(key) is not None), "")
        if not name and (answer := value.get("final_answer", value.get("answer"))) is not None:
            name, given = "finish", answer
        if name:
            tool = _known(name, tools)
            thought = value.get("thought")
            before = text[:start].partition("```")[0].partition("<tool_call>")[0]
            return _Found(tool or name, _as_text(tool, given), thought if isinstance(thought, str) else before)
    return None


def _from_call(text: str, tools: Collection[str]) -> _Found | None:
    """An action in the paper's form, `search[okapi]`, on a line of its own without a label."""
    place = 0
    for line in text.split("\n"):
        call = CALL.match(line)
        if call and call[2] in CLOSING and (tool := _known(call[1], tools)):
            quoted = line[call.end() : call.end() + 1] in QUOTES
            if call[2] == "[" or quoted:
                return _Found(tool, _cleaned(tool, _inner(text[place + call.end() :], call[2])), text[:place])
        place += len(line) + 1
    return None


def _inner(text: str, opening: str) -> str:
    """What stands before the bracket that closes `opening`; the whole text where none does."""
    closing, depth = CLOSING[opening], 1
    for match in re.finditer(rf"[{re.escape(opening + closing)}]", text):
        depth += 1 if match[0] == opening else -1
        if not depth:
            text = text[: match.start()]
            break
    return NAMED.sub("", text.strip(), count=1) if NAMED.match(text.strip()) else text


def _cleaned(tool: str, text: str) -> str:
    """The input without fence, quotes and what follows it."""
    text = text.strip()
    if text.startswith("```") and tool != "python":
        text = (_fenced(text) or text.strip("`")).strip()
    value, end = _decoded(text)
    if tool == "python":
        inside = list(value.values()) if isinstance(value, dict) else []
        return program_of(inside[0] if len(inside) == 1 and isinstance(inside[0], str) else text)
    if isinstance(value, dict) or (isinstance(value, list) and tool not in OWN):
        return _as_text(tool, value) if tool in OWN else text[:end]
    return _unquoted(text if tool in MANY_LINES else text.partition("\n")[0])


def _as_text(tool: str, value: Any) -> str:
    """A JSON value as a tool's input; an object that holds nothing but one text is that text."""
    if isinstance(value, dict) and tool in OWN and len(value) == 1:
        value = next(iter(value.values()))
    if isinstance(value, str):
        return _cleaned(tool, value) if tool in MANY_LINES else value.strip()
    return json.dumps(value, ensure_ascii=False)


def _checked(thought: str, found: _Found, tools: Collection[str]) -> Action:
    tool, problem = found.tool, ""
    if tool not in tools:
        problem = f"there is no tool '{_one_line(tool)[:60]}': use one of {', '.join(tools)}"
    elif tool in OWN and not found.input:
        problem = f"the action '{tool}' has no input: write it after 'Input:'"
    return Action(thought, tool, found.input, problem)


def _known(name: str, tools: Collection[str]) -> str:
    """The tool that a model means by `name`; empty when there is none."""
    if name in tools:
        return name
    wanted = re.sub(r"[-\s]", "_", name.strip().lower())
    by_form = {re.sub("-", "_", tool.lower()): tool for tool in tools}
    return by_form.get(wanted) or by_form.get(MEANT.get(wanted, ""), "")


def _fenced(text: str) -> str | None:
    """The first block between fences, or after a fence that is never closed."""
    start = text.find("```")
    if start < 0:
        return None
    first, _newline, body = text[start + 3 :].partition("\n")
    if "```" in first:  # all on one line
        return re.sub(r"^python\b", "", first.partition("```")[0]).strip()
    end = body.find("```")
    return body[: end if end >= 0 else None].strip("\n").rstrip()


def _decoded(text: str) -> tuple[Any, int]:
    """The JSON value at the start of a text, and where it ends; (None, 0) where there is none."""
    if text[:1] not in ("{", "["):
        return None, 0
    try:
        return json.JSONDecoder(strict=False).raw_decode(text)
    except (ValueError, RecursionError):
        return None, 0


def _unquoted(text: str) -> str:
    text = text.strip()
    bare = text.strip("*").strip()
    inner = bare[1:-1].strip()
    if len(bare) > 2 and QUOTES.get(bare[0]) == bare[-1] and inner and bare[0] not in inner and bare[-1] not in inner:
        return inner
    return text


def _one_line(text: str) -> str:
    return " ".join(text.split())[:LONGEST_THOUGHT]
