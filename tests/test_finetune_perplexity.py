"""finetune.evaluation.perplexity against direct computation by the real (cut) model."""

import math
from pathlib import Path
from typing import Any

import pytest

from finetune.errors import DatasetEmpty
from finetune.evaluation import perplexity
from finetune.example import Example
from rag_app.engines.layout import Layout

TEXTS = ["The okapi lives in the Ituri rainforest. Its tongue is 45 centimetres long.", "Lunch costs 14 euros a day."]


@pytest.fixture(scope="module")
def loaded(small_base: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM
    return model.from_pretrained(small_base, dtype=torch.float32), AutoTokenizer.from_pretrained(small_base)


def test_texts_have_the_perplexity_of_the_models_own_loss(loaded: Any) -> None:
    import torch

    model, tokenizer = loaded
    total, count = 0.0, 0
    for text in TEXTS:
        tokens = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            total += float(model(input_ids=tokens, labels=tokens).loss) * (tokens.shape[1] - 1)
        count += tokens.shape[1] - 1
    assert perplexity.of_texts(model, tokenizer, TEXTS) == pytest.approx(math.exp(total / count), rel=1e-4)


def test_a_text_is_read_in_windows(loaded: Any) -> None:
    model, tokenizer = loaded
    parts = [tokenizer.decode(tokenizer(TEXTS[0]).input_ids[start : start + 8]) for start in (0, 8, 16)]
    whole, cut = (perplexity.of_texts(model, tokenizer, texts, length=8) for texts in (TEXTS[:1], parts))
    assert whole == pytest.approx(cut, rel=1e-5)
    assert whole != pytest.approx(perplexity.of_texts(model, tokenizer, TEXTS[:1]), rel=1e-3)


def test_answers_count_their_own_tokens_and_the_stop(loaded: Any) -> None:
    import torch

    model, tokenizer = loaded
    layout = Layout("small", tokenizer)
    examples = [
        Example("a", "question_answering", "Where does the okapi live?", "In the Ituri rainforest", (TEXTS[0],))
    ]
    prompt, answer = layout.prompt(examples[0].messages()), layout.answer(examples[0].answer)
    tokens = torch.tensor([prompt + answer])
    labels = tokens.clone()
    labels[0, : len(prompt)] = -100
    with torch.no_grad():
        loss = float(model(input_ids=tokens, labels=labels).loss)
    model.train()
    assert perplexity.of_answers(model, layout, examples) == pytest.approx(math.exp(loss), rel=1e-4)
    assert model.training
    assert answer[-1] == layout.stop()


def test_nothing_has_no_perplexity(loaded: Any) -> None:
    model, tokenizer = loaded
    with pytest.raises(DatasetEmpty, match="two words"):
        perplexity.of_texts(model, tokenizer, ["", "a"])
