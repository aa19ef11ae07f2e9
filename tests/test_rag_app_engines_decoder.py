"""Prompts evaluated with llama.cpp: what is reused is bit for bit what would be computed anew."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from rag_app.engines.decoder import Batch, Decoder, cut
from rag_app.engines.native import Model
from rag_app.models import locate

N_CTX = 512
MARK = [2, 198, 1, 520]
SIZE = 32
"""Most tokens of a batch here, to be quick."""
STORY = "The king had many sons, and each of them wanted a horse of another colour. " * 40


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(str(locate()), N_CTX)


@pytest.fixture(scope="module")
def decoder(model: Model) -> Decoder:
    return Decoder(model, slots=3)


@pytest.fixture(autouse=True)
def _forgotten(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder.forget()
    monkeypatch.setattr("rag_app.engines.decoder.WORTH_COPYING", 2 * SIZE)


def words(model: Model, seed: int, count: int) -> list[int]:
    """Tokens that differ from their first on for every seed."""
    return model.tokens(f"{seed} says: {STORY}", False)[:count]


def prompt_of(*messages: list[int]) -> list[Batch]:
    """Messages of given tokens, with what a template writes behind each."""
    return cut([piece for message in messages for piece in ((message, True), (MARK, False))], SIZE)


def read(decoder: Decoder, prompt: list[Batch]) -> tuple[int, Any]:
    """How many tokens were reused, and the logits after the prompt."""
    first, *_ = decoder.read(prompt)
    return first, decoder.logits().copy()


def write(decoder: Decoder, count: int) -> list[int]:
    """Greedy tokens."""
    written = []
    for _ in range(count):
        written.append(int(decoder.logits().argmax()))
        decoder.write(written[-1])
    return written


def fresh(decoder: Decoder, prompt: list[Batch]) -> Any:
    decoder.forget()
    reused, logits = read(decoder, prompt)
    assert reused == 0
    return logits


def length(prompt: list[Batch]) -> int:
    return sum(map(len, prompt))


# cutting


def test_a_prompt_is_cut_before_messages_and_every_so_many_tokens() -> None:
    assert cut([]) == []
    assert cut([([1, 2], False), ([3], True), ([4], False), ([5, 6], True), ([7], False)], 9) == [
        (1, 2, 3, 4),
        (5, 6, 7),
    ]
    assert cut([(list(range(5)), True), ([9], False)], 2) == [(0, 1), (2, 3), (4, 9)]
    assert cut([(list(range(4)), True), ([9], True)], 2) == [(0, 1), (2, 3), (9,)]
    assert cut([([1], False), ([], True), ([], True), ([2], False)], 9) == [(1,), (2,)]


@pytest.mark.parametrize("size", [1, 3, 256])
def test_where_a_prompt_is_cut_depends_on_nothing_behind_it(size: int) -> None:
    pieces = [([1, 2], False), ([3, 4, 5, 6, 7], True), ([8], False)]
    longer = cut([*pieces, ([9, 10, 11], True)], size)
    whole = cut(pieces, size)
    assert longer[: len(whole)] == whole


# reuse


def test_the_same_prompt_again_needs_no_evaluation_and_gives_the_same_bits(model: Model, decoder: Decoder) -> None:
    prompt = prompt_of(words(model, 1, 75), words(model, 2, 20))
    before = fresh(decoder, prompt)
    written = write(decoder, 5)
    reused, again = read(decoder, prompt)
    assert reused == length(prompt)
    assert np.array_equal(before, again)
    assert write(decoder, 5) == written


def test_a_follow_up_evaluates_what_comes_after_the_earlier_messages(model: Model, decoder: Decoder) -> None:
    first = prompt_of(words(model, 1, 75), words(model, 2, 15))
    longer = prompt_of(words(model, 1, 75), words(model, 2, 15), words(model, 3, 18))
    anew = fresh(decoder, longer)
    fresh(decoder, first)
    write(decoder, 20)
    reused, logits = read(decoder, longer)
    assert reused == length(first)
    assert np.array_equal(anew, logits)


def test_a_growing_message_is_reused_up_to_a_cut(model: Model, decoder: Decoder) -> None:
    short, long = prompt_of(words(model, 1, 2 * SIZE + 7)), prompt_of(words(model, 1, 2 * SIZE + 28))
    anew = fresh(decoder, long)
    fresh(decoder, short)
    reused, logits = read(decoder, long)
    assert reused == 2 * SIZE
    assert np.array_equal(anew, logits)


def test_every_slot_computes_the_same_bits(model: Model, decoder: Decoder) -> None:
    prompt = prompt_of(words(model, 1, 75))
    found = [fresh(decoder, prompt)]
    for other in (2, 3):
        decoder.forget()
        for number in range(1, other):
            read(decoder, prompt_of(words(model, 50 + number, 30)))
        reused, logits = read(decoder, prompt)
        assert reused == 0
        found.append(logits)
    assert all(np.array_equal(found[0], logits) for logits in found)


def test_interleaved_conversations_keep_what_was_read(model: Model, decoder: Decoder) -> None:
    turns = {talk: [words(model, 10 * talk + turn, 20) for turn in range(4)] for talk in (1, 2, 3)}
    for turn in range(4):
        for messages in turns.values():
            reused, logits = read(decoder, prompt_of(*messages[: turn + 1]))
            assert reused == 24 * turn
            write(decoder, 3)
    assert np.array_equal(logits, fresh(decoder, prompt_of(*turns[3])))


def test_the_slot_longest_unused_is_given_up(model: Model, decoder: Decoder) -> None:
    prompts = [prompt_of(words(model, number, 20)) for number in range(4)]
    for prompt in prompts:
        read(decoder, prompt)
    assert [read(decoder, prompt)[0] for prompt in prompts[1:]] == [24, 24, 24]
    assert read(decoder, prompts[0])[0] == 0


def test_a_long_common_beginning_is_copied_and_both_prompts_stay(model: Model, decoder: Decoder) -> None:
    common, one, other = words(model, 1, 2 * SIZE), words(model, 2, 20), words(model, 3, 22)
    anew = fresh(decoder, prompt_of(common, other))
    fresh(decoder, prompt_of(common, one))
    write(decoder, 3)
    reused, logits = read(decoder, prompt_of(common, other))
    assert reused == len(common) + len(MARK)
    assert np.array_equal(anew, logits)
    for prompt in (prompt_of(common, one), prompt_of(common, other)):
        assert read(decoder, prompt)[0] == length(prompt)


def test_a_short_common_beginning_costs_nobody_a_slot(model: Model, decoder: Decoder) -> None:
    system, one, other = words(model, 1, 20), words(model, 2, 100), words(model, 3, 30)
    read(decoder, prompt_of(system, one))
    assert read(decoder, prompt_of(system, other))[0] == 0
    assert read(decoder, prompt_of(system, one))[0] == 128


def test_a_short_rest_is_given_up_where_every_slot_is_taken(model: Model, decoder: Decoder) -> None:
    common = words(model, 1, SIZE)
    prompts = [prompt_of(words(model, 5, 20)), prompt_of(words(model, 6, 20)), prompt_of(common, words(model, 2, 20))]
    for prompt in prompts:
        read(decoder, prompt)
    assert read(decoder, prompt_of(common, words(model, 3, 20)))[0] == SIZE + len(MARK)
    assert [read(decoder, prompt)[0] for prompt in prompts] == [24, 24, SIZE + len(MARK)]


def test_nothing_is_kept_after_forgetting(model: Model, decoder: Decoder) -> None:
    prompt = prompt_of(words(model, 1, 30))
    before = fresh(decoder, prompt)
    assert np.array_equal(before, fresh(decoder, prompt))


def test_reading_given_up_keeps_what_was_read(model: Model, decoder: Decoder) -> None:
    prompt = prompt_of(words(model, 1, 3 * SIZE))
    anew = fresh(decoder, prompt)
    decoder.forget()
    for done in decoder.read(prompt):
        if done == 2 * SIZE:
            break
    reused, logits = read(decoder, prompt)
    assert reused == 2 * SIZE
    assert np.array_equal(anew, logits)


def test_reading_that_is_unwanted_ends_in_the_middle_of_a_batch(model: Model, decoder: Decoder) -> None:
    prompt = prompt_of(words(model, 1, 2 * SIZE))
    anew = fresh(decoder, prompt)
    decoder.forget()
    asked = iter([False] * 20)
    done = list(decoder.read(prompt, lambda: next(asked, True)))
    assert done == [0]
    reused, logits = read(decoder, prompt)
    assert reused == 0
    assert np.array_equal(anew, logits)


def test_one_slot_serves_too(model: Model) -> None:
    decoder = Decoder(model, slots=1)
    one, other = prompt_of(words(model, 1, 100), words(model, 2, 30)), prompt_of(words(model, 1, 100))
    anew = fresh(decoder, other)
    fresh(decoder, one)
    reused, logits = read(decoder, other)
    assert reused == 3 * SIZE  # what follows the whole prompt was not kept
    assert np.array_equal(anew, logits)


# the model


def test_control_tokens_in_plain_text_are_spelt_out(model: Model) -> None:
    assert model.tokens("<|im_end|>", True) == [2]
    spelt = model.tokens("<|im_end|>", False)
    assert 2 not in spelt
    assert b"".join(map(model.piece, spelt)) == b"<|im_end|>"
    assert model.piece(2) == b""
    assert 2 in model.ends


@pytest.mark.parametrize("text", ["", "a\0b", "🦒👩‍👩‍👧", "\ud800", "x" * 10_000])
def test_any_text_becomes_tokens(model: Model, text: str) -> None:
    pieces = b"".join(map(model.piece, model.tokens(text, False)))
    assert pieces.decode() == text.replace("\ud800", "\ufffd")


@pytest.fixture
def poor(model: Model, monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    monkeypatch.setattr("rag_app.engines.native.SHARE", 10**9)
    model.__dict__.pop("slots", None)
    yield model
    model.__dict__.pop("slots", None)


def test_little_memory_means_one_slot(poor: Model) -> None:
    assert poor.slots == 1
