"""Calls of tools, as data sets write them, in the form that `rag_app` teaches: thought, action, input."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from finetune.data.formats.fields import Unusable
from finetune.data.formats.rows import parsed
from rag_app.prompt import react_step
from rag_app.tools import NAME, STANDARD

Tools = tuple[tuple[str, str], ...]
"""Name and description of each."""
FINISH = ("finish", "Ends with the answer. Input: the answer, short.")
"""As `rag_app.tools` describes it."""
DONE = "I can answer now."


@dataclass(frozen=True, slots=True)
class Call:
    """A tool, and what it is given."""

    tool: str
    arguments: str
    """A JSON object in one line; the bare text for a tool of `rag_app`, each of which takes one text."""
    id: str = ""


NO_CALL = Call("", "")


def described(row: Mapping[str, Any]) -> Tools:
    """The tools of a conversation, with `finish` behind them; none where it has none.

    A description ends with the names and kinds of the arguments, in the words that `rag_app.tools` has for them.

    Raises:
        Unusable: they cannot be read, or one has a name that a model could not call it by.
    """
    given = row.get("tools") or row.get("functions") or []
    given = _json(given) if isinstance(given, str) else given
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise Unusable("'tools' is no list of objects: write one")
    tools = tuple(_tool(one["function"] if isinstance(one.get("function"), dict) else one) for one in given)
    if any(name == FINISH[0] for name, _ in tools):
        raise Unusable("a tool is called 'finish', by which runs end: give it another name")
    return (*tools, FINISH) if tools else ()


def _tool(given: Mapping[str, Any]) -> tuple[str, str]:
    name, description, schema = given.get("name"), given.get("description"), given.get("parameters")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise Unusable(f"the tool {name!r} cannot be called so: use up to 64 letters, digits, _ and -")
    properties = schema.get("properties") if isinstance(schema, dict) else None
    kinds = {
        key: str(one.get("type", "value")) if isinstance(one, dict) else "value"
        for key, one in (properties if isinstance(properties, dict) else {}).items()
    }
    form = ", ".join(f'"{key}": {kind}' for key, kind in kinds.items())
    told = description.strip() if isinstance(description, str) else ""
    return name, f"{told} Input: {{{form}}}".strip() if form and name not in STANDARD else told


def calls(given: Any) -> Iterator[Call]:
    """The calls of a turn: OpenAI's, or the JSON text of one call or several with `name` and `arguments`.

    Raises:
        Unusable: they are none of these.
    """
    given = _json(given) if isinstance(given, str) else given
    for one in given if isinstance(given, list) else [given]:
        inner = one.get("function", one) if isinstance(one, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            raise Unusable("a call has no 'name': write an object with 'name' and 'arguments'")
        called = one.get("id")
        name = called if isinstance(called, str) else ""
        yield Call(inner["name"], _input(inner["name"], inner.get("arguments")), name)


def _input(tool: str, arguments: Any) -> str:
    arguments = _json(arguments) if isinstance(arguments, str) and arguments.strip() else arguments or {}
    if not isinstance(arguments, dict):
        raise Unusable(f"the arguments of '{tool}' are no JSON object: write one")
    if tool in STANDARD and len(arguments) == 1 and isinstance(only := next(iter(arguments.values())), str):
        return only
    return json.dumps(arguments, ensure_ascii=False)


def _json(text: str) -> Any:
    try:
        return parsed(text)
    except (ValueError, RecursionError):
        raise Unusable("a call or its arguments are no JSON: write an object") from None


def step(call: Call, tools: Tools, thought: str) -> str:
    """What the model shall write to call a tool.

    Raises:
        Unusable: there is no such tool.
    """
    if call.tool not in dict(tools):
        raise Unusable(f"it calls '{call.tool}', which is none of its tools: describe it there")
    return react_step(thought or f"I need {call.tool} for this.", call.tool, call.arguments)


def finished(answer: str) -> str:
    """What the model shall write to end with an answer."""
    return react_step(DONE, FINISH[0], answer)
