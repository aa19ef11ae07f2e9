import time

import pytest

from rag_app.parse import parse_step, program_of

TOOLS = ("search", "lookup", "calculator", "python", "finish", "web-search")


@pytest.mark.parametrize(
    "text",
    [
        "Thought: I look.\nAction: search\nInput: okapi tongue",
        "Thought: I look.\r\nAction: search\r\nInput: okapi tongue\r\n",
        "I look.\nAction: search\nInput: okapi tongue",
        "Thought: I look.\nAction: search\nAction Input: okapi tongue",
        "Thought: I look.\nAction: search[okapi tongue]",
        "Thought 1: I look.\nAction 1: Search[okapi tongue]\nObservation 1: 45 cm\nThought 2: x\nAction 2: Finish[45]",
        "Thought: I look.\nsearch[okapi tongue] and then more",
        'Thought: I look.\nAction: search("okapi tongue")',
        'Thought: I look.\nAction: search(query="okapi tongue")',
        "THOUGHT: I look.\nACTION: SEARCH\nINPUT: okapi tongue",
        '**Thought:** I look.\n**Action:** `search`\n**Action Input:** "okapi tongue"',
        "**Thought**: I look.\n**Action**: **search**\n**Input**: **“okapi tongue”**".replace("**“", "“").replace(
            "”**", "”"
        ),
        "- Thought: I look.\n- Action: search\n- Input: okapi tongue",
        "1. Thought: I look.\n2. Action: search\n3. Input: okapi tongue",
        "### Thought: I look.\n### Action: search\n### Input: okapi tongue",
        "Thought: I look.\nAction: I will use search\nInput: okapi tongue",
        "Thought: I look.\nAction: search okapi tongue",
        "Thought: I look.\nAction: search\nokapi tongue",
        "Thought: I look.\nAction:\nsearch\nInput:\nokapi tongue",
        "Thought: I look.\nAction：search\nInput：okapi tongue",
        "Thought: I\nThought: look.\nAction: search\nInput: okapi tongue",
        "Thought: I look.\nAction: search\nInput: okapi tongue\n\nNow I wait for what it gives.",
        "Thought: I look.\nAction: search\nInput: okapi tongue\nObservation: 45 cm\nFinal Answer: 45 cm",
        "Thought: I look.\nAction: search\nInput: okapi tongue\nFinal Answer: 45 cm",
        "Thought: I look.\nAction: search\nInput: okapi tongue\nAction: finish\nInput: 45 cm",
        "Thought: I look.\nAction: search\nInput: ```\nokapi tongue\n```",
        'Thought: I look.\nAction: search\nInput: {"query": "okapi tongue"}',
        '{"thought": "I look.", "action": "search", "action_input": "okapi tongue"}',
        'I look.\n```json\n{"action": "search", "action_input": {"query": "okapi tongue"}}\n```',
        'I look.\n<tool_call>\n{"name": "search", "arguments": {"query": "okapi tongue"}}\n</tool_call>',
        'Thought: I look.\nAction:\n```\n{"action": "search", "action_input": "okapi tongue"}\n```\nObservation: x',
        "<think>Action: lookup\nInput: x</think>\nThought: I look.\nAction: search\nInput: okapi tongue",
        "Observation: x\nThought: I look.\nAction: search\nInput: okapi tongue",
    ],
)
def test_every_form_of_the_same_step(text: str) -> None:
    action = parse_step(text, TOOLS)
    assert (action.thought, action.tool, action.input, action.problem) == ("I look.", "search", "okapi tongue", "")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("finish[45 cm]", "45 cm"),
        ("Thought: I know.\nAction: finish\nInput: 45 cm", "45 cm"),
        ("Thought: I know.\nAction: finish\nInput: First.\nSecond.\n\n- third", "First.\nSecond.\n\n- third"),
        ("Thought: I know.\nAction: finish\nAnswer: 45 cm", "45 cm"),
        ("Thought: I know.\nFinal Answer: 45 cm", "45 cm"),
        ("**Final Answer:** 45 cm", "45 cm"),
        ("Answer: 45 cm [1].", "45 cm [1]."),
        ("Action: None\nFinal Answer: 45 cm", "45 cm"),
        ('{"action": "Final Answer", "action_input": "45 cm"}', "45 cm"),
        ('{"answer": "45 cm"}', "45 cm"),
        ('Action: finish\nInput: {"answer": "45 cm"}', "45 cm"),
        ("Action: finish\nInput: [Okapi] is its name", "[Okapi] is its name"),
        ('Action: finish\nInput: "a" and "b"', '"a" and "b"'),
        ("Final Answer: 45 cm\nAction: search\nInput: more", "45 cm"),
    ],
)
def test_answers_finish(text: str, answer: str) -> None:
    action = parse_step(text, TOOLS)
    assert (action.tool, action.input, action.problem) == ("finish", answer, "")


@pytest.mark.parametrize(
    "text",
    [
        "Action: python\nInput:\n```python\nanswer: int = 3\nInput: int = 4\n```",
        "Action: python\nInput: ```python\nanswer: int = 3\nInput: int = 4\n```\nObservation: 3",
        "Action: python\n```\nanswer: int = 3\nInput: int = 4\n```\nso it is",
        'Action: python\nInput: {"program": "answer: int = 3\\nInput: int = 4"}',
    ],
)
def test_labels_in_a_program_are_code(text: str) -> None:
    assert parse_step(text, TOOLS).input == "answer: int = 3\nInput: int = 4"


def test_unfenced_and_unclosed_programs() -> None:
    assert parse_step("Action: python\nInput: x = 3\nanswer = x\nObservation: 3", TOOLS).input == "x = 3\nanswer = x"
    assert (
        parse_step("Action: python\nInput:\n```python\nx = 3\nanswer = x\nObservation: 3", TOOLS).input
        == "x = 3\nanswer = x"
    )
    assert parse_step("Action: python[print(a[1])]", TOOLS).input == "print(a[1])"


@pytest.mark.parametrize(
    ("text", "tool", "problem"),
    [
        ("", "", "no action: write the lines 'Action:' with one of search, lookup"),
        ("The okapi is an animal.", "", "no action"),
        ("Thought: hm\nObservation: 45 cm", "", "no action"),
        ("Thought: hm\nAction:", "", "there is no tool ''"),
        ("Action: fly\nInput: x", "fly", "there is no tool 'fly': use one of search, lookup"),
        ('{"action": "fly", "action_input": "x"}', "fly", "there is no tool 'fly'"),
        ("Action: search\nInput:", "search", "the action 'search' has no input"),
        ("Action: search", "search", "has no input"),
        ("Action: finish\nInput: \n\nObservation: x", "finish", "has no input"),
    ],
)
def test_problems_are_told_in_one_line(text: str, tool: str, problem: str) -> None:
    action = parse_step(text, TOOLS)
    assert action.tool == tool
    assert problem in action.problem
    assert "\n" not in action.problem


def test_names_of_tools() -> None:
    assert parse_step("Action: web search\nInput: x", TOOLS).tool == "web-search"
    assert parse_step("Action: Web_Search\nInput: x", TOOLS).tool == "web-search"
    today = parse_step("Action: today", ["today"])  # whether it needs input, the tool itself tells
    assert (today.tool, today.input, today.problem) == ("today", "", "")
    several = parse_step('Action: convert\nInput: {"amount": 3,\n "to": "EUR"} and so on', ["convert"])
    assert several.input == '{"amount": 3,\n "to": "EUR"}'


N = 1_000_000


@pytest.mark.parametrize(
    "unit",
    ["a", " ", "\n", "*", "{", "[", '{"a":', "```", "```\n", "search[", "search[\n", "Thought:\n", "Action: ",
     "Action: none\n", "Action:\n", "Action: none\nThought: x\n", "</think>",
     "Final Answer: ", '"', "x=\t", "1.", "_ ", "a=", "\r"],
)  # fmt: skip
def test_time_is_linear(unit: str) -> None:
    for head in (
        "",
        "Action: ",
        "Action: search\nInput: ",
        "Action: python\nInput: ",
        "Action: search[",
        "```python\n",
    ):
        text = head + unit * (N // len(unit) // 4)
        start = time.process_time()
        parse_step(text, TOOLS)
        program_of(text)
        assert time.process_time() - start < 1.5, head


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\nanswer = 3\n```", "answer = 3"),
        ("Here it is:\n```python\ndef f():\n    return 3\n\nanswer = f()\n```\nIt gives 3.\n```\nx\n```",
         "def f():\n    return 3\n\nanswer = f()"),
        ("```py\r\nx = 1\r\nanswer = x\r\n```", "x = 1\nanswer = x"),
        ("```python\nanswer = 3", "answer = 3"),
        ("```\n    x = 1\n```", "    x = 1"),
        ("answer = 3", "answer = 3"),
        ("Sure, here is the program.\nimport math\nanswer = math.pi", "import math\nanswer = math.pi"),
        ("`answer = 3`", "answer = 3"),
        ("45 * 4", "45 * 4"),
        ("", ""),
    ],
)  # fmt: skip
def test_program_of(text: str, program: str) -> None:
    assert program_of(text) == program
