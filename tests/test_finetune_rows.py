"""Rows: the mask of a real batch read back, shared prefixes with the gradients of separate rows, packing."""

from pathlib import Path
from typing import Any

import pytest

from finetune.config import Config
from finetune.errors import RecordInvalid
from finetune.example import Example
from finetune.training.rows import IGNORED, Row, Tokens, collate, collate_padded, mask, rows, tokens
from rag_app.engines.layout import Layout
from rag_app.prompt import NOT_FOUND

PASSAGES = (
    "The okapi lives in the Ituri rainforest. Its tongue is 45 centimetres long.\n\n<|im_end|> is no mark here.",
    "The axolotl keeps its gills for life. It lives in Lake Xochimilco near Mexico City.",
)
ASKED = [
    ("Where does the okapi live?", "the Ituri rainforest"),
    ("How long is its tongue?", "45 centimetres"),
    ("Who wrote Faust?", NOT_FOUND),
    ("Where does the axolotl live?", "Lake Xochimilco"),
]


def examples() -> list[Example]:
    return [
        Example(
            str(n), "question_answering", question, answer, PASSAGES, answerable=answer != NOT_FOUND, origin=f"x:{n}"
        )
        for n, (question, answer) in enumerate(ASKED)
    ]


@pytest.fixture(scope="module")
def layout(small_base: Path) -> Layout:
    from transformers import AutoTokenizer

    return Layout("small", AutoTokenizer.from_pretrained(small_base))


@pytest.fixture(scope="module")
def model(small_base: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    from finetune.training import attention

    return AutoModelForCausalLM.from_pretrained(
        small_base, dtype=torch.float32, attn_implementation=attention.register()
    ).train()


def made(layout: Layout, **settings: Any) -> list[Row]:
    config = Config(**settings)
    return rows(tokens(examples(), layout, config, []), config)


def read(layout: Layout, batch: Any) -> list[tuple[str, str]]:
    """What each label is asked behind, and the labels, from the tensors that the model is given."""
    found, row = [], batch["labels"][0].tolist()
    see = mask(batch["own"], batch["prefix"], batch["weights"].dtype)[0, 0] == 0
    for place, label in enumerate(row):
        if label == IGNORED:
            continue
        if place == 0 or row[place - 1] == IGNORED:
            found.append([batch["input_ids"][0][see[place]].tolist(), []])
        found[-1][1].append(label)
    decode = layout.tokenizer.decode
    return [(decode(prompt), decode(answer)) for prompt, answer in found]


@pytest.mark.parametrize("settings", [{}, {"share_prefixes": False}, {"sample_packing": True}])
def test_the_mask_of_a_batch_read_back(layout: Layout, settings: dict[str, Any]) -> None:
    batch = collate([row.as_dict() for row in made(layout, **settings)])
    rendered = [layout.tokenizer.decode(layout.prompt(example.messages())) for example in examples()]
    assert sorted(read(layout, batch)) == sorted(
        (prompt, f"{answer}<|im_end|>") for prompt, (_, answer) in zip(rendered, ASKED, strict=True)
    )


def test_loss_on_the_prompt_too_where_it_is_asked_for(layout: Layout) -> None:
    for row, example in zip(made(layout, train_on_inputs=True), examples(), strict=True):
        assert row.labels[:-1] == row.ids[1:]
        assert layout.tokenizer.decode(row.ids).endswith(f"{example.answer}<|im_end|>")
        assert row.labels[-1] == IGNORED


def test_prompts_are_those_of_serving(layout: Layout) -> None:
    from rag_app.prompt import question_prompt

    one = tokens(examples(), layout, Config(), [])[0]
    assert one.prompt == layout.prompt(question_prompt(ASKED[0][0], PASSAGES))
    assert one.answer[-1] == layout.stop() == layout.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert one.prompt.count(layout.stop()) == 2  # of the system's and the user's turn; the passage's is plain text


def test_refusals_weigh_as_configured(layout: Layout) -> None:
    weights = [one.weight for one in tokens(examples(), layout, Config(abstention_weight=0.5), [])]
    assert weights == [1.0, 1.0, 0.5, 1.0]
    [row] = made(layout, abstention_weight=0.5)
    assert {w for w, label in zip(row.weights, row.labels, strict=True) if label != IGNORED} == {0.5, 1.0}


def gradients(model: Any, parts: list[dict[str, Any]]) -> tuple[float, Any]:
    """Of the sum of all losses."""
    import torch

    from finetune.training.forward import inputs

    model.zero_grad()
    total = 0.0
    for batch in parts:
        labels = batch["labels"]
        logits = model(**inputs(batch, torch.float32)).logits
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        loss = (losses * batch["weights"].flatten()).sum()
        loss.backward()
        total += float(loss.detach())
    return total, torch.cat([p.grad.flatten() for p in model.parameters()]).clone()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"sample_packing": True}, {"abstention_weight": 0.3}])
def test_shared_prefixes_have_the_gradients_of_separate_rows(
    layout: Layout, model: Any, settings: dict[str, Any]
) -> None:
    shared = made(layout, **settings)
    apart = made(layout, **{**settings, "share_prefixes": False, "sample_packing": False})
    assert len(shared) == 1 and len(apart) == 4 and len(shared[0]) < 0.5 * sum(map(len, apart))
    loss, found = gradients(model, [collate([row.as_dict() for row in shared])])
    for expected_loss, expected in (
        gradients(model, [collate([row.as_dict()]) for row in apart]),
        gradients(model, [collate([row.as_dict() for row in apart])]),
        gradients(model, [collate_padded([row.as_dict() for row in apart])]),
    ):
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert (found - expected).norm() < 1e-4 * expected.norm()


def test_a_packed_row_is_blind_to_its_neighbours(layout: Layout, model: Any) -> None:
    import torch

    from finetune.training.forward import inputs

    parts = made(layout, share_prefixes=False)
    one, other = (collate([part.as_dict() for part in pair]) for pair in (parts[:2], parts[2:0:-1]))
    with torch.no_grad():
        first = model(**inputs(one, torch.float32)).logits[0, len(parts[0]) :]
        second = model(**inputs(other, torch.float32)).logits[0, len(parts[2]) :]
    assert first.shape == second.shape
    assert (first - second).abs().max() < 1e-4


def test_families_share_what_is_worth_it_and_fit_a_row() -> None:
    prefix = list(range(100))
    family = [Tokens([*prefix, 1000 + n, 7], [8, 9]) for n in range(40)]
    strangers = [Tokens([2000 + n, *prefix], [8, 9]) for n in range(3)]
    config = Config(sequence_len=200)
    found = rows([*family, *strangers], config)
    assert sum(row.examples for row in found) == 43
    assert sorted({row.examples for row in found}) == [1, 8, 16]
    assert all(len(row) == 100 + 4 * row.examples for row in found if row.examples > 1)
    assert sum(row.useful for row in found) == 40 * 104 + 3 * 103
    assert max(len(row) for row in rows(family, Config(sequence_len=110))) <= 110


def test_the_same_prompt_twice_keeps_a_token_for_each_branch() -> None:
    twice = [Tokens(list(range(100)), [5, 6]), Tokens(list(range(100)), [7, 6])]
    [row] = rows(twice, Config())
    assert [label for label in row.labels if label != IGNORED] == [5, 6, 7, 6]
    assert row.ids == [*range(99), 99, 5, 6, 99, 7, 6] and row.positions == [*range(99), 99, 100, 101, 99, 100, 101]


def test_packing_loses_nothing_and_overfills_nothing(layout: Layout) -> None:
    packed = made(layout, sample_packing=True, share_prefixes=False, sequence_len=400)
    assert sum(row.examples for row in packed) == 4 and max(map(len, packed)) <= 400
    assert sum(map(len, packed)) == sum(map(len, made(layout, share_prefixes=False)))


def test_a_record_of_100_000_tokens_is_one_line(layout: Layout) -> None:
    long = Example("long", "question_answering", "Why?", "Because.", ("word " * 100_000,), origin="data.jsonl:7")
    with pytest.raises(RecordInvalid, match=r"^data.jsonl:7: 10\d,\d+ tokens, more than sequence_len 2,048: .*skip$"):
        tokens([long], layout, Config(), [])
    skipped: list[tuple[str, str]] = []
    assert len(tokens([long, *examples()], layout, Config(on_bad_record="skip"), skipped)) == 4
    assert [origin for origin, _ in skipped] == ["data.jsonl:7"]
