"""finetune.evaluation.generate with the real model: batches answer as each prompt would be answered alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune.errors import RecordInvalid
from finetune.evaluation import generate
from finetune.example import Example
from rag_app.engines.layout import Layout

WORDS = ("the", "okapi", "lives", "in", "a", "deep", "forest", "near", "the", "river", "where", "trees", "grow", "tall")
EXAMPLES = [
    Example(
        str(n),
        "question_answering",
        "Where does it live?",
        "there",
        tuple(" ".join(WORDS[start : start + 3 + n]) for start in range(1 + n * 2)),
    )
    for n in (0, 4, 1, 3)
]


@pytest.fixture(scope="module")
def small(small_base: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM
    model = model.from_pretrained(small_base, dtype=torch.float32)
    return model, Layout("small", AutoTokenizer.from_pretrained(small_base))


@pytest.fixture
def wild(small: Any) -> Any:
    """A tiny model of large random weights: what it writes hangs on every token and position before."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4}
    config: Any = LlamaConfig(vocab_size=small[0].config.vocab_size, initializer_range=0.4, **sizes)
    return LlamaForCausalLM(config).eval(), small[1]


def peft_configs() -> Iterator[Any]:
    import peft

    hf: Any = peft
    common = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 12}
    yield None
    yield hf.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    yield hf.PromptTuningConfig(**common)
    yield hf.PrefixTuningConfig(**common)
    yield hf.PromptEncoderConfig(**common, encoder_hidden_size=32)
    yield hf.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=8, adapter_layers=3)


@pytest.mark.parametrize("number", range(6), ids=["plain", "lora", "prompt", "prefix", "p-tuning", "llama-adapter"])
def test_a_batch_answers_as_each_prompt_alone(wild: Any, number: int) -> None:
    from peft import get_peft_model

    model, layout = wild
    config = list(peft_configs())[number]
    plain = generate.answers(model, layout, EXAMPLES, max_tokens=6)
    if config:
        model = get_peft_model(model, config)
        for name, parameter in model.named_parameters():
            if "adaption_gate" in name:
                parameter.data.fill_(0.5)
            elif "prompt_encoder" in name:
                parameter.data.normal_(0, 0.4)
    together = generate.answers(model, layout, EXAMPLES, max_tokens=6)
    assert together == [generate.answers(model, layout, [one], max_tokens=6)[0] for one in EXAMPLES]
    assert len(set(together)) == len(EXAMPLES)
    assert (together != plain) == bool(config)


@pytest.mark.slow
def test_an_answer_ends_at_the_stop_token_and_holds_nothing_of_the_prompt(base: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hf: Any = AutoModelForCausalLM
    model, layout = hf.from_pretrained(base, dtype=torch.float32), Layout("base", AutoTokenizer.from_pretrained(base))
    asked = Example("a", "text_generation", "What is 2 + 2? Say only the number.", "4")
    (answer,) = generate.answers(model, layout, [asked], max_tokens=40)
    assert answer
    assert "Say only" not in answer
    assert "<|im_end|>" not in answer
    assert len(layout.answer(answer)) < 30


def test_greedy_whatever_the_models_own_settings_say(small: Any) -> None:
    model, layout = small
    plain = generate.answers(model, layout, EXAMPLES, max_tokens=8)
    before = model.generation_config.to_dict()
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=9.0)
    try:
        assert generate.answers(model, layout, EXAMPLES, max_tokens=8) == plain
    finally:
        model.generation_config.update(**before)


def test_batches_keep_to_their_tokens_and_the_longest_come_first(small: Any) -> None:
    model, layout = small
    lengths = [len(layout.prompt(one.messages())) for one in EXAMPLES]
    told: list[tuple[int, int]] = []
    found = list(
        generate.stream(
            model,
            layout,
            EXAMPLES,
            max_tokens=4,
            batch_tokens=2 * (max(lengths) + 4),
            progress=lambda stage, done, total: told.append((done, total)),
        )
    )
    assert told == [(0, 4), (2, 4), (4, 4)]
    assert [place for place, _ in found] == sorted(range(4), key=lambda place: -lengths[place])
    one_by_one = generate.stream(model, layout, EXAMPLES, max_tokens=4, batch_tokens=1)
    assert dict(one_by_one) == dict(found)


def test_a_model_in_training_stays_in_training(small: Any) -> None:
    import torch

    model, layout = small
    model.train()
    try:
        next(generate.stream(model, layout, EXAMPLES, max_tokens=2, batch_tokens=1))
        assert model.training
        assert model(input_ids=torch.tensor([[1, 2]])).logits.requires_grad
    finally:
        model.eval()


def test_a_prompt_that_fills_the_window_is_refused_by_its_place(small: Any) -> None:
    model, layout = small
    long = Example("x", "question_answering", "Where?", "there", ("okapi " * 9000,), origin="data.jsonl:7")
    with pytest.raises(RecordInvalid, match=r"^data.jsonl:7: the prompt has 18,\d+ tokens"):
        generate.answers(model, layout, [EXAMPLES[0], long], max_tokens=4)


def test_nothing_is_answered_by_nothing(small: Any) -> None:
    assert generate.answers(*small, [], max_tokens=4) == []
