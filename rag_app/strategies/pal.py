"""The model writes a program, the sandbox runs it, its value is the answer (PAL, Gao et al. 2023)."""

import ast
import re
from collections.abc import Iterator

from rag_app.answer import Event, Step
from rag_app.citations import Citer
from rag_app.errors import PromptTooLong
from rag_app.grammar import pal_grammar
from rag_app.parse import program_of
from rag_app.prompt import program_prompt, question_prompt
from rag_app.run import LEAST_REPLY, Run
from rag_app.sandbox import run_python

NUMBER = re.compile(r"-?[\d,]*\.?\d+(?:e[+-]?\d+)?%?")
MOST_PROGRAMS = 3
"""A program that fails this often is given up; answers that came later were no better for it."""


def pal(run: Run) -> Iterator[Event]:
    """Programs until one gives a value; a question that none answers is answered directly."""
    failed: list[tuple[str, str]] = []
    while len(failed) < min(MOST_PROGRAMS, run.options.max_steps) and run.budget_left() >= LEAST_REPLY:
        try:
            messages = run.fit(
                lambda texts, history: program_prompt(run.question, texts, history, failed), run.answer.hits
            )
        except PromptTooLong:
            if not failed:
                raise
            break  # the programs that failed fill the window
        reply = yield from run.write(messages, grammar=pal_grammar())
        program = program_of(reply)
        outcome = run_python(program)
        observation = outcome.error or outcome.value or "the program gave `answer` no value"
        wrong = bool(outcome.error) or not outcome.value.strip()
        number = len(run.answer.steps) + 1
        yield from run.step(Step(number, "", "python", program, observation, wrong))
        if not wrong:
            yield from _conclude(run, program, outcome.value)
            return
        failed.append((program, observation))
    run.answer.notes.append("no program gave a value; this is a direct answer")
    if run.reply_room() < 1:
        yield from run.show("")
    else:
        messages = run.fit(lambda texts, history: question_prompt(run.question, texts, history), run.answer.hits)
        yield from run.say(messages)


def _conclude(run: Run, program: str, value: str) -> Iterator[Event]:
    """The value, with the places that hold what it was computed from."""
    writer = run.writer(check_quotes=run.options.quotes)
    yield from writer.of(iter([value]))
    # A number that was computed rests on those in the program; a text is borne out by its own words or not at all.
    if not run.answer.citations and NUMBER.fullmatch(value.strip()):
        evidence = Citer(run.question, run.passages).evidence(figures(program))
        yield from writer.cite(evidence)
    run.answer.finish_reason = "stop"


def figures(program: str) -> list[str]:
    """Numbers that stand in a program, in order."""
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    numbers = (c for c in constants if isinstance(c, int | float) and not isinstance(c, bool))
    return list(dict.fromkeys(map(str, numbers)))
