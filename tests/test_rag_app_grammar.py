import re
from typing import Any

import pytest

from rag_app.grammar import pal_grammar, react_grammar
from rag_app.models import locate
from rag_app.parse import parse_step, program_of
from rag_app.sandbox import run_python

NAMES = ("search", "lookup", "calculator", "python", "finish")
ASK = "<|im_start|>user\nHow long is the tongue of an okapi?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def model() -> Any:
    import llama_cpp

    return llama_cpp.Llama(str(locate()), n_ctx=1024, n_threads=2, verbose=False)


def written(model: Any, grammar: str, **settings: Any) -> dict[str, Any]:
    """What the bundled model writes when it can write nothing else than the grammar allows."""
    import llama_cpp

    made = llama_cpp.LlamaGrammar.from_string(grammar, verbose=False)
    model.reset()
    choice: dict[str, Any] = model.create_completion(
        ASK, grammar=made, **{"max_tokens": 60, "temperature": 0.0, **settings}
    )["choices"][0]
    return choice


def shortened(grammar: str) -> str:
    """The same form with less room, so that the model comes to its end in a few tokens."""
    for bounds, less in (
        ("1,300", "1,25"),
        ("0,160", "0,25"),
        ("0,400", "0,25"),
        ("1,30", "1,2"),
        ("0,15", "0,1"),
        ("0,120", "0,20"),
    ):
        grammar = grammar.replace(f"{{{bounds}}}", f"{{{less}}}")
    return grammar


@pytest.mark.parametrize("seed", range(5))
def test_step_of_the_real_model_has_no_problem(model: Any, seed: int) -> None:
    # At a temperature of 1.5 the model writes anything that it may, so the grammar alone holds it to the form.
    choice = written(model, shortened(react_grammar(NAMES)), max_tokens=120, temperature=1.5 if seed else 0, seed=seed)
    assert choice["finish_reason"] == "stop", choice["text"]
    action = parse_step(choice["text"], NAMES)
    assert action.tool in NAMES
    assert not action.problem
    assert action.thought is not None and len(action.thought) <= 25
    assert action.input


@pytest.mark.parametrize("name", NAMES)
def test_each_action_can_be_the_only_one(model: Any, name: str) -> None:
    text = written(model, shortened(react_grammar([name])), max_tokens=120, temperature=1.0, seed=3)["text"]
    action = parse_step(text, NAMES)
    assert (action.tool, action.problem) == (name, "")
    assert action.input


@pytest.mark.parametrize("name", ["my_tool", "tool-2", "T3", "_x"])
def test_names_of_ones_own_tools(model: Any, name: str) -> None:
    text = written(model, shortened(react_grammar([name], bare=[name])))["text"]
    assert text.endswith(f"\nAction: {name}\nInput:")
    assert parse_step(text, [name]).problem == ""


def test_program_of_the_real_model_is_whole(model: Any) -> None:
    for seed in range(3):
        text = written(model, shortened(pal_grammar()), max_tokens=80, temperature=1.0 if seed else 0, seed=seed)[
            "text"
        ]
        assert re.fullmatch(r"```python\n(?:[^\n]*\n){1,2}```", text)
        program = program_of(text)
        assert program and "```" not in program
        run_python(program)  # may be wrong in any way, and harms nobody


def test_full_grammars_are_read() -> None:
    import llama_cpp

    for grammar in (react_grammar(NAMES), react_grammar([*NAMES, "own-1"], bare=["own-1"]), pal_grammar()):
        llama_cpp.LlamaGrammar.from_string(grammar, verbose=False)
