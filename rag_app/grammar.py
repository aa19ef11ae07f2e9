"""GBNF grammars of the forms that the prompts teach, for engines that can hold a model to one. Knows no engine.

Repetitions are bounded, so that a model that goes round in circles comes to the end of its form, not of its tokens.
"""

import json
from collections.abc import Collection, Sequence

THOUGHT = 300
"""Most characters of a thought."""
INPUT = 400
"""Most characters of a tool's input."""
LINES = 30
"""Most lines of a program."""
LINE = 120
"""Most characters of a line of a program."""

# A first character that is no blank, quote, backtick or bracket, so that no input is empty once it is read.
TEXT = rf"""input ::= [a-zA-Z0-9$({{\u00c0-\u167f\u3041-\uffdc+.<=>-] [^\r\n]{{0,{INPUT}}}
"""
PROGRAM = rf"""program ::= "```python\n" line{{1,{LINES}}} "```"
line ::= [ ]{{0,16}} [^ \t\r\n`] [^\r\n]{{0,{LINE}}} "\n"
"""


def react_grammar(tools: Sequence[str], bare: Collection[str] = ()) -> str:
    """One step: a line of thought, an action that is one of `tools`, its input.

    Args:
        tools: names, at least one; the input of `python` is a fenced program, that of the others one line.
        bare: those of them that take no input.
    """
    kinds = {
        '"\\nInput: " input': [name for name in tools if name not in bare and name != "python"],
        '"\\nInput:\\n" program': [name for name in tools if name == "python"],
        '"\\nInput:"': [name for name in tools if name in bare],
    }
    actions = [f"({' | '.join(map(json.dumps, names))}) {rest}" for rest, names in kinds.items() if names]
    root = rf"""root ::= "Thought: " [^\r\n]{{1,{THOUGHT}}} "\nAction: " ({" | ".join(actions)})"""
    rules = [root, TEXT if any("input" in action for action in actions) else "", PROGRAM if "python" in tools else ""]
    return "\n".join(filter(None, rules))


def pal_grammar() -> str:
    """A fenced program and nothing else."""
    return f"root ::= program\n{PROGRAM}"
