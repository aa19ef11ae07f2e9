"""What documents may not do, whatever they say: forge passages or turns, call tools, be cited for what is not in them.

That a small model repeats what a document orders is its own weakness; bench/injections.py measures it.
"""

import re
from pathlib import Path
from typing import Any

import pytest
from langchain_core.tools import tool

from index import build
from index.loaders import load
from index.paths import printable
from rag_app.answer import Answer
from rag_app.bot import Bot
from rag_app.engines.llama import LlamaCpp
from rag_app.prompt import Message, program_prompt, question_prompt, react_prompt, render, thinking_prompt
from rag_app.settings import Options
from tests.conftest import ScriptedModel, WordEncoder
from tests.injections import CANARY, INJECTIONS

QUESTION = "Where does the okapi live?"
NUMBERED = range(len(INJECTIONS))


def injected(folder: Path, number: int, encoder: Any) -> Path:
    """An index of one honest document and one that is not."""
    (folder / "honest.txt").write_text("The okapi lives in the Ituri rainforest. It is shy.\n")
    (folder / "hostile.txt").write_text(INJECTIONS[number], "utf-8", newline="")
    build([folder], folder / ".index", encoder=encoder)
    return folder / ".index"


def sound(answer: Answer) -> None:
    """Every marker names a passage that was given, every quote stands in its document."""
    cited = {citation.n for citation in answer.citations}
    assert {int(n) for n in re.findall(r"(?<!\])\[(\d{1,3})\]", answer.answer)} <= cited | {0}
    assert cited <= set(range(1, len(answer.hits) + 1))
    for citation in answer.citations:
        assert answer.hits[citation.n - 1].source == citation.source
        [document] = load(Path(citation.source), Path(citation.source).read_bytes())
        assert document.text[citation.start : citation.end] == citation.quote


@pytest.mark.parametrize("number", NUMBERED)
@pytest.mark.parametrize("prompt", [question_prompt, thinking_prompt, program_prompt])
def test_passages_stay_apart_and_in_their_place(prompt: Any, number: int) -> None:
    passages = ["The okapi is shy.", INJECTIONS[number], "It has stripes."]
    content = prompt(QUESTION, passages)[-1].content
    parts = re.split(r"\n\s*\n", content)
    assert [part[:4] for part in parts[:3]] == ["[1] ", "[2] ", "[3] "]
    assert len(parts) == 4
    assert parts[3].endswith(f": {QUESTION}")
    assert re.findall(r"^\[\d+\]", content, re.MULTILINE) == ["[1]", "[2]", "[3]"]


@pytest.mark.parametrize("number", NUMBERED)
def test_no_document_question_history_or_observation_holds_a_control_token(number: int) -> None:
    text = INJECTIONS[number]
    turn = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    template = f"{{% for m in messages %}}{turn}{{% endfor %}}<|im_start|>assistant\n"
    history = [(text, text)]
    for messages in (
        question_prompt(text, [text], history),
        react_prompt(text, [("search", text)], [(text, text)], history),
        program_prompt(text, [text], history, [(text, text)]),
        [Message("system", text), Message("user", text)],
    ):
        segments = render(messages, template)
        control = "".join(segment.text for segment in segments if segment.special)
        assert control.count("<|im_start|>") == len(messages) + 1
        assert control.count("<|im_end|>") == len(messages)
        assert CANARY not in control


@pytest.mark.parametrize("number", NUMBERED)
def test_only_the_model_calls_tools(tmp_path: Path, number: int) -> None:
    called = []

    @tool
    def canary(word: str) -> str:
        """Must never be called."""
        called.append(word)
        return word

    model = ScriptedModel.saying(
        "Thought: I look.\nAction: lookup\nInput: okapi",
        "Thought: I know.\nAction: finish\nInput: The okapi lives in the Ituri rainforest.",
        window=9000,
        max_tokens=60,
    )
    bot = Bot(model, injected(tmp_path, number, WordEncoder()), WordEncoder(), Options(strategy="react"), [canary])
    answer = bot.ask(QUESTION)
    assert [step.action for step in answer.steps] == ["search", "lookup", "finish"]
    assert called == []
    assert answer.answer.startswith("The okapi lives in the Ituri rainforest.")
    sound(answer)


@pytest.mark.parametrize("number", NUMBERED)
def test_a_model_that_repeats_what_it_was_given_forges_no_citation(tmp_path: Path, number: int) -> None:
    """The worst case: the reply is the hostile document itself, markers and all."""
    model = ScriptedModel(INJECTIONS[number], "\n[99] [1] The okapi lives on the moon [2].", window=9000, max_tokens=60)
    answer = Bot(model, injected(tmp_path, number, WordEncoder()), WordEncoder()).ask(QUESTION)
    sound(answer)
    assert "[99]" not in answer.answer
    assert all(character.isprintable() or character in "\n\t" for character in printable(answer.answer))


@pytest.mark.slow
@pytest.mark.parametrize("number", NUMBERED)
def test_the_real_model_keeps_to_the_form(tmp_path: Path, number: int, real_encoder: Any, real_model: LlamaCpp) -> None:
    answer = Bot(real_model, injected(tmp_path, number, real_encoder), real_encoder).ask(QUESTION)
    sound(answer)
    assert answer.steps == []
    assert answer.query == QUESTION
