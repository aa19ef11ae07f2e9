"""Follow-ups become queries that stand alone; questions that stand alone are never touched."""

import json
from pathlib import Path

import pytest

from rag_app.followup import LOOK_BACK, needs_context, standalone

HISTORY = [("What is the default rank of LoRA?", "The default rank is 8.")]

LEANING = [
    "Why?",
    "why is that",
    "How much?",
    "And for VeRA?",
    "What about VeRA?",
    "how about AdaLoRA",
    "VeRA?",
    "more examples",
    "Tell me more",
    "Can you give an example?",
    "Can it be merged?",
    "What are its limitations?",
    "How do I change that?",
    "How do I change it when training on 2 GPUs?",
    "How many parameters does it train?",
    "Does this work with Conv2d?",
    "Which one is faster?",
    "And the second one?",
    "What does the latter do?",
    "With quantization?",
    "And on multiple GPUs?",
    "but why not 16?",
    "What is the default?",
    "Are there any drawbacks?",
    "What should I use instead?",
    "What else?",
    "What happens then?",
    "ok, and how do I save it?",
    "What if I want 16?",
    "One more question: why is it slow?",
    "Also on GPUs?",
    "Only for VeRA?",
    "Also, how do I change it?",
    "Same for VeRA?",
    "Does VeRA support both?",
    "Do both methods work?",
    "Which one has the lowest memory usage?",
    "Who is it?",
    "Does it freeze the weights?",
    "And which weighs 10 grams?",
    "Who said that?",
    "You mentioned a limit, how high is it?",
    "Warum?",
    "¿Por qué?",
    "为什么？",
]
ALONE = [
    "What is LoRA?",
    "What is prompt tuning?",
    "And how do I install PEFT from source?",
    "Does DoRA work when it is quantized?",
    "What does LoRA do and how is it initialized?",
    "Which method keeps its matrices frozen?",
    "Is it possible to train a quantized model with LoRA?",
    "How long does it take to train a LoRA adapter?",
    "Which methods are there that need no gradient?",
    "How do I make sure that the model improves?",
    "Why does this error occur: Attempting to unscale FP16 gradients?",
    "If the weights of an adapter do not move, is it because of hooks?",
    "What is the difference between TIES and DARE?",
    "Who was the former president of the society?",
    "Which of the two methods, IA3 or LoRA, is the smaller one?",
    "Who wrote the first book about these tides, printed in Utrecht by the widow of the baker Hendrik Maas?",
    "What happened in 1943?",
    "hotswap adapter",
    "LoftQ",
    "What time is it in Oslo?",
    "What happens if it rains in Paris?",
    "Which one is the largest planet?",
    "Do okapis have both eyes?",
    "Also, what is the boiling point of water?",
    "And what is the oil change interval?",
    "Same-sex marriage in Norway?",
    "Only admins can log in, why?",
    "Which of these two, okapi or axolotl, lives longer?",
    "What is it that the okapi eats?",
    "Who is he, Einstein?",
    "Even numbers: what are they?",
    "What if the engine oil leaks?",
    "Can they who work in Oslo claim taxis?",
    "lora_alpha",
    "Was ist der Standardrang von LoRA?",
    "Combien de paramètres sont entraînés ?",
    "奥卡皮鹿生活在哪里？",
    "โอคาพีอาศัยอยู่ที่ไหน?",
    "",
    "???",
]


@pytest.mark.parametrize("question", LEANING)
def test_what_leans_on_the_conversation_takes_its_topic_along(question: str) -> None:
    assert needs_context(question, HISTORY)
    assert "LoRA" in (query := standalone(question, HISTORY)) or "VeRA" in query
    assert "rank" in query


@pytest.mark.parametrize("question", ALONE)
def test_what_stands_alone_is_not_touched(question: str) -> None:
    assert not needs_context(question, HISTORY)
    assert standalone(question, HISTORY) == question


@pytest.mark.parametrize("question", [*LEANING, *ALONE])
def test_the_first_question_is_never_touched(question: str) -> None:
    assert not needs_context(question, [])
    assert standalone(question, []) == question


def test_the_parallel_thing_takes_the_place_of_the_first() -> None:
    assert standalone("And for VeRA?", HISTORY) == "What is the default rank of VeRA?"
    # which of two is meant is not clear: the words are added
    two = [("How does LoRA differ from DoRA?", "")]
    assert standalone("What about VeRA?", two) == "What about VeRA? (LoRA differ DoRA)"
    # not within another word
    assert standalone("What about IA3?", [("Does LoRA use LoRAConfig's r?", "")]).startswith("What about IA3? (")


def test_a_chain_keeps_its_topic() -> None:
    history = [*HISTORY, ("And for VeRA?", "256."), ("Why?", "Its matrices are shared."), ("Is it slower?", "No.")]
    query = standalone("And on GPUs?", history)
    assert "VeRA" in query and "LoRA" not in query and "rank" in query
    # a new topic ends the chain
    history.append(("How does model merging with TIES work?", "It trims."))
    query = standalone("Is it slow?", history)
    assert "TIES" in query and "VeRA" not in query


def test_an_item_of_the_answer_is_picked() -> None:
    answers = ["TIES and DARE.", "There are:\n1. TIES, which trims\n2. DARE, which drops\n", "- TIES\n- DARE"]
    for answer in answers:
        history = [("Which methods for merging are there?", answer)]
        for question in ("How does the second one work?", "What does the latter do?", "How does the last one work?"):
            query = standalone(question, history)
            assert "DARE" in query and "TIES" not in query and "merging" in query
        assert "TIES" in standalone("And the first?", history)
    assert standalone("And the fifth one?", [("Which methods for merging are there?", "TIES and DARE.")])


def test_names_of_a_short_answer_are_taken_along() -> None:
    query = standalone("Which layers does it support?", [("Which method shares matrices?", "That is VeRA.")])
    assert "VeRA" in query
    long = "Methods differ in what they share between layers. " * 20 + "VeRA shares matrices."
    assert "VeRA" not in standalone("Which layers does it support?", [("Which method shares matrices?", long)])


def test_nothing_breaks_it() -> None:
    for earlier in ("", "???", "Why?", "奥卡皮鹿", "\n", "a" * 5000, "(.*[", "\\1"):
        for question in ("Why?", "And VeRA?", "the second one?", "that", "it", "What about (.*[ ?", "that?", "it's"):
            assert question in standalone(question, [(earlier, earlier)] * 2) or earlier


def test_a_query_stays_short_however_long_the_conversation() -> None:
    history = [(f"And what does Thing{n} with word{n} other{n} have?", "Name" + "Xy" * 9) for n in range(500)]
    assert len(standalone("And why is it so?", history).split()) < 60
    assert standalone("Why?", history) == standalone("Why?", history[-LOOK_BACK:])
    pasted = "word " * 200_000
    assert standalone(pasted, history) == pasted
    assert len(standalone("Why?", [(pasted + "end", pasted)])) < 1000


def test_rows_of_the_benchmark() -> None:
    """Of the questions that stand alone none is changed; of the follow-ups nearly all are."""
    root = Path(__file__).parent.parent
    rows = [json.loads(line) for line in (root / "bench" / "followups.jsonl").read_text("utf-8").splitlines()]
    changed = {True: 0, False: 0}
    for row in rows:
        history = [(question, answer) for question, answer in row["history"]]
        changed[row["standalone"]] += standalone(row["question"], history) != row["question"]
        assert row["gold_text"] in (root / "examples" / "peft_docs" / row["gold_source"]).read_text("utf-8")
    assert changed[True] == 0
    assert changed[False] >= 0.9 * sum(not row["standalone"] for row in rows)
