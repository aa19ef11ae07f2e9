"""GBNF grammars of the forms that the prompts teach, for engines that can hold a model to one. Knows no engine.

Repetitions are bounded, so that a model that goes round in circles comes to the end of its form, not of its tokens.
"""

import json
from collections.abc import Collection, Sequence

THOUGHT = 300
"""Most characters of a thought."""
QUERY = 160
"""Most characters of the input of a standard tool that takes a few words."""
INPUT = 400
"""Most characters of an answer, and of the input of other tools."""
LINES = 30
"""Most lines of a program."""
STATEMENTS = 15
"""Most lines before the one that gives a program's answer."""
LINE = 120
"""Most characters of a line of a program."""

# No blank, quote, backtick or bracket, so that no input is empty once it is read.
FIRST = r"first ::= [a-zA-Z0-9$({\u00c0-\u167f\u3041-\uffdc+.<=>-]"
PROGRAM = rf"""program ::= "```python\n" line{{1,{LINES}}} "```"
line ::= [ ]{{0,16}} [^ \t\r\n`] [^\r\n]{{0,{LINE}}} "\n"
"""


def react_grammar(tools: Sequence[str], bare: Collection[str] = ()) -> str:
    """One step: a line of thought, an action that is one of `tools`, its input.

    Args:
        tools: names, at least one; the input of `python` is a fenced program, that of the others one line.
        bare: those of them that take no input.
    """
    short = ("search", "lookup", "calculator")
    kinds = {
        f'"\\nInput: " first [^\\r\\n]{{0,{QUERY}}}': [n for n in tools if n in short],
        f'"\\nInput: " first [^\\r\\n]{{0,{INPUT}}}': [n for n in tools if n not in (*short, "python", *bare)],
        '"\\nInput:\\n" program': [n for n in tools if n == "python"],
        '"\\nInput:"': [n for n in tools if n in bare],
    }
    actions = [f"({' | '.join(map(json.dumps, names))}) {rest}" for rest, names in kinds.items() if names]
    root = rf"""root ::= "Thought: " [^\r\n]{{1,{THOUGHT}}} "\nAction: " ({" | ".join(actions)})"""
    rules = [root, FIRST if set(tools) - {"python", *bare} else "", PROGRAM if "python" in tools else ""]
    return "\n".join(filter(None, rules))


def pal_grammar() -> str:
    """A fenced program that ends by giving `answer` its value: small models have to be held to that."""
    return rf"""root ::= "```python\n" line{{0,{STATEMENTS}}} "answer = " [^ \t\r\n`#] [^\r\n]{{0,{LINE}}} "\n```"
line ::= [ ]{{0,16}} [^ \t\r\n`#] [^\r\n]{{0,{LINE}}} "\n"
"""


def writing_grammar() -> str:
    """A question, and its answer between quote marks, which an engine may hold to what stands in the passage."""
    return rf"""root ::= "Question: " [A-Z] [^"?\r\n]{{8,{QUERY}}} "?\nAnswer: \"" [^"\r\n]{{1,{QUERY}}} "\""
"""
