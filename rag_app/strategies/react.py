"""Thought, action, observation, until the model finishes (ReAct, Yao et al. 2022); every run ends with an answer."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rag_app.answer import Event, Found, Reading, Step
from rag_app.confidence import confidence
from rag_app.grammar import react_grammar
from rag_app.parse import Action, parse_step
from rag_app.prompt import FIRST_THOUGHT, Message, question_prompt, react_prompt, react_step
from rag_app.run import LEAST_REPLY, Run
from rag_app.tools import STANDARD, Notebook, use_slowly

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

LEFT_OUT = "(left out: too long)"
REPEATED = "You did this already; what it gave stands above. Do something else, or finish."
MOST_REPEATS = 2
"""So many repeated actions in a row end the run."""
FINAL_SHARE = 4
"""A run stops for a final answer when less than one part in this many of its budget is left."""


def react(run: Run, notebook: Notebook, tools: "Mapping[str, BaseTool]") -> Iterator[Event]:
    """Steps up to the limit. The first search, for the question itself, is made without asking the model.

    Args:
        run: the answer in the making.
        notebook: the passages found in this run; the tools search and lookup write there.
        tools: by name; `finish` ends the run.
    """
    first = Action(FIRST_THOUGHT, "search", run.answer.query, "")
    steps = [first]
    observed = yield from _act(run, notebook, tools, first, react_step(first.thought, first.tool, first.input))
    written = [(react_step(first.thought, first.tool, first.input), observed)]
    reason, repeats = "steps", 0
    while len(written) < run.options.max_steps:
        if run.budget_left() < max(LEAST_REPLY, run.options.budget // FINAL_SHARE) and len(written) > 1:
            reason = "budget"
            break
        messages = _fitted(run, tools, written)
        if not messages:
            reason = "window"
            break
        # Where a grammar holds the model to a form, it cannot insist on the tool with which it just repeated itself.
        grammar = _grammar(tools, steps[-1].tool if repeats else "")
        reply = yield from run.write(messages, grammar=grammar, stop=["\nObservation:"])
        action = parse_step(reply, tools)
        if action.tool == "finish" and not action.problem:
            yield from run.step(Step(len(written) + 1, action.thought, "finish", action.input, ""))
            yield from _finish(run, notebook, action.input)
            return
        if not action.problem and any((a.tool, a.input) == (action.tool, action.input) for a in steps):
            repeats += 1
            action = Action(action.thought, action.tool, action.input, REPEATED)
        else:
            repeats = 0
        steps.append(action)
        laid_out = react_step(action.thought, action.tool, action.input) if action.tool else reply.strip()
        observed = yield from _act(run, notebook, tools, action, laid_out)
        written.append((laid_out, observed))
        if repeats == MOST_REPEATS:
            reason = "repeated"
            break
    yield from _best_so_far(run, notebook, reason)


def _grammar(tools: "Mapping[str, BaseTool]", but: str) -> str:
    left = {name: tool for name, tool in tools.items() if name != but}
    return react_grammar(list(left), [name for name, tool in left.items() if not tool.args])


def _act(run: Run, notebook: Notebook, tools: "Mapping[str, BaseTool]", action: Action, laid_out: str) -> Any:
    """Carries an action out; yields its events and returns the observation."""
    before = len(notebook.hits)
    if action.problem:
        text, error = action.problem, True
    else:
        for observation in use_slowly(tools, action.tool, action.input):
            if observation is None:
                yield Reading()  # a tool takes its time; the run can be stopped meanwhile
            else:
                text, error = observation.text, observation.error
    if len(notebook.hits) > before:
        run.answer.hits = run.passages = list(notebook.hits)
        yield Found(list(notebook.hits))
    number = len(run.answer.steps) + 1
    yield from run.step(Step(number, action.thought, action.tool, action.input, text, error))
    return text


def _fitted(run: Run, tools: "Mapping[str, BaseTool]", written: list[tuple[str, str]]) -> list[Message]:
    """The prompt of the next step; where it is too long, history, then the oldest observations and steps are left out.

    Nothing where not even the last step fits.
    """
    described = [(name, tool.description) for name, tool in tools.items()]
    kept, history, cut = list(written), list(run.history), 0
    while kept:
        messages = react_prompt(run.question, described, kept, history)
        if run.generator.count_tokens(messages) <= run.prompt_room():
            run.answer.history_dropped = len(run.history) - len(history)
            return messages
        if history:
            history.pop(0)
        elif cut < len(kept):
            kept[cut] = kept[cut][0], LEFT_OUT
            cut += 1
        else:
            kept.pop(0)
            cut -= 1
    return []


def _finish(run: Run, notebook: Notebook, answer: str) -> Iterator[Event]:
    run.passages = list(notebook.hits)
    if not _grounded(run, notebook, answer):
        yield from run.refuse()
        return
    yield from run.show(answer)
    run.answer.finish_reason = "stop"


def _grounded(run: Run, notebook: Notebook, answer: str = "") -> bool:
    """Whether the passages have to do with the question, or a tool that knows more than they do has answered."""
    for step in run.answer.steps:
        computed = step.action in ("calculator", "python") and step.observation.strip() in answer
        if not step.error and (computed or step.action not in ("", *STANDARD)):
            return True
    return confidence(run.answer.query, notebook.hits) >= (run.least_confidence or 0.0)


def _best_so_far(run: Run, notebook: Notebook, reason: str) -> Iterator[Event]:
    """Answers directly from what was found when the run came to its limit, and says so."""
    why = {
        "steps": f"after {run.options.max_steps} steps, the most allowed",
        "budget": f"at its budget of {run.options.budget:,} tokens",
        "repeated": "because it repeated itself",
        "window": "because another step would not fit the model's window",
    }[reason]
    run.answer.notes.append(f"the run was ended {why}; this is the best answer so far")
    if not _grounded(run, notebook):
        yield from run.refuse()
        return
    best = sorted(notebook.hits, key=lambda hit: hit.cosine or 0.0, reverse=True)[: run.options.k]
    run.answer.hits = run.passages = [replace(hit, rank=rank) for rank, hit in enumerate(best, 1)]
    if run.reply_room() < 1:
        thoughts = [step.thought for step in run.answer.steps[1:] if step.thought]
        yield from run.show(thoughts[-1] if thoughts else "")
    else:
        yield from run.say(run.fit(lambda texts, history: question_prompt(run.question, texts, history), run.passages))
    run.answer.finish_reason = reason
