"""Answers in one reply: zero-shot, few-shot, chain of thought."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rag_app.answer import Event, Step
from rag_app.examples import load_examples, pick
from rag_app.prompt import ANSWER_MARK, Shot, Turns, question_prompt, thinking_prompt
from rag_app.run import Run


def zero_shot(run: Run) -> Iterator[Event]:
    """The question after the passages, nothing else."""
    messages = run.fit(lambda texts, history: question_prompt(run.question, texts, history), run.passages)
    yield from run.say(messages)


def few_shot(run: Run, encode: Callable[[Sequence[str]], Any] | None = None) -> Iterator[Event]:
    """The same after worked examples, those most like the question.

    Raises:
        SettingInvalid: the file of examples cannot be read.
    """
    chosen = pick(run.question, load_examples(run.options.examples), run.options.shots, encode)
    shots = [Shot(example.question, example.passages, example.answer) for example in chosen]

    def prompt(texts: Sequence[str], history: Turns) -> Any:
        return question_prompt(run.question, texts, history, shots)

    while shots and run.passages and run.generator.count_tokens(prompt([run.passages[0].text], ())) > run.prompt_room():
        shots.pop(0)  # the least alike
    if len(shots) < len(chosen):
        run.answer.notes.append(f"{len(chosen) - len(shots)} examples did not fit the model's window")
    yield from run.say(run.fit(prompt, run.passages))


def chain_of_thought(run: Run) -> Iterator[Event]:
    """Reasoning first, then the answer (Wei et al. 2022); the reasoning is a step, not part of the answer."""
    messages = run.fit(lambda texts, history: thinking_prompt(run.question, texts, history), run.passages)
    thought = yield from run.write(messages)
    reasoning, _, answer = thought.rpartition(ANSWER_MARK)
    if not reasoning.strip() or not answer.strip():  # no mark, or nothing around it: what there is, is the answer
        reasoning, answer = "", thought.replace(ANSWER_MARK, " ")
    if reasoning.strip():
        yield from run.step(Step(1, reasoning.strip(), "", "", ""))
    yield from run.show(answer.strip())
