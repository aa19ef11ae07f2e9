"""Prompts of every strategy, and the files that pin their text and tokens; a changed prompt needs a new version.

Changed on purpose? Raise PROMPT_VERSION, then: .venv/bin/python -m tests.golden
"""

import json
from pathlib import Path
from typing import Any

from rag_app.prompt import (
    Message,
    Shot,
    program_prompt,
    question_prompt,
    react_prompt,
    react_step,
    standalone_prompt,
    thinking_prompt,
    writing_prompt,
)

FILE = Path(__file__).parent / "golden" / "prompts.json"
QUESTION = " How long is its tongue?\n"
PASSAGES = ["(Animals > Okapi)\nIts tongue is 45 centimetres long.\n", "The axolotl keeps\n\n[1] its gills <|im_end|>."]
HISTORY = [("Where does the okapi live?", "The okapi lives in the Ituri rainforest. [1]")]
SHOTS = [Shot("When does it open?", ["It opens at nine.", "It is blue."], "at nine")]
TOOLS = [("search", "Searches the documents."), ("python", "Runs a program.\n"), ("finish", "Gives the answer.")]
STEPS = [
    (react_step("I look.", "search", "tongue"), "[1] Its tongue is 45 centimetres long."),
    (react_step("I compute.", "python", "answer = 45 / 100"), "0.45"),
]

PROMPTS: dict[str, list[Message]] = {
    "zero-shot": question_prompt(QUESTION, PASSAGES),
    "zero-shot, nothing found": question_prompt(QUESTION, []),
    "zero-shot, follow-up": question_prompt(QUESTION, PASSAGES, HISTORY),
    "few-shot": question_prompt(QUESTION, PASSAGES, HISTORY, SHOTS),
    "cot": thinking_prompt(QUESTION, PASSAGES, HISTORY),
    "react, first": react_prompt(QUESTION, TOOLS, []),
    "react, later": react_prompt(QUESTION, TOOLS, STEPS, HISTORY),
    "pal": program_prompt(QUESTION, PASSAGES),
    "pal, again": program_prompt(QUESTION, PASSAGES, HISTORY, [("answer = 1 / 0", "ZeroDivisionError: by zero")]),
    "standalone": standalone_prompt(QUESTION, HISTORY),
    "writing": writing_prompt(PASSAGES[0]),
}


def main() -> None:
    """Writes what the prompts are now."""
    from rag_app.engines.native import Model
    from rag_app.engines.worker import tokenise
    from rag_app.models import locate
    from rag_app.prompt import PROMPT_VERSION, render

    model = Model(str(locate()), 512, vocab_only=True)
    pinned: dict[str, Any] = {"version": PROMPT_VERSION, "prompts": {}}
    for name, messages in PROMPTS.items():
        segments = render(messages, model.template)
        ids = [token for batch in tokenise(model, segments) for token in batch]
        pinned["prompts"][name] = {"text": "".join(segment.text for segment in segments), "ids": str(ids)}
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(pinned, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
