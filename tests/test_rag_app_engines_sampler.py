"""The choice of a token: every setting has its effect, repeats with its seed, and lets nothing forbidden through."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from rag_app.decoding import Decoding
from rag_app.engines.native import Model, Refused
from rag_app.engines.sampler import Grammar, Sampler
from rag_app.models import locate

DRAWS = 300


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(str(locate()), 512, vocab_only=True)


@pytest.fixture(scope="module")
def likely(model: Model) -> Any:
    """Logits of few likely tokens: of token 100 + i by -i/2, of all others by -30."""
    logits = np.full(model.n_vocab, -30, np.float32)
    logits[100:120] = -np.arange(20) / 2
    return logits


def sampler(model: Model, grammar: str | None = None, prompt: tuple[int, ...] = (), **settings: Any) -> Sampler:
    return Sampler(model, asdict(Decoding(**settings)), prompt, grammar)


def drawn(model: Model, likely: Any, **settings: Any) -> list[int]:
    """Independent draws, as numbers from 0 for the likeliest."""
    chooser = sampler(model, **settings)
    return [int(chooser.next(likely.copy()) or 0) - 100 for _ in range(DRAWS)]


def token(model: Model, text: str) -> int:
    (only,) = model.tokens(text, False)
    return only


# settings


def test_greedy_takes_the_likeliest_and_the_first_of_equals(model: Model, likely: Any) -> None:
    assert set(drawn(model, likely)) == {0}
    equal = likely.copy()
    equal[[90, 105]] = 7
    assert sampler(model).next(equal) == 90


def test_draws_follow_the_probabilities_and_repeat_with_the_seed(model: Model, likely: Any) -> None:
    first = drawn(model, likely, temperature=1, seed=3)
    assert drawn(model, likely, temperature=1, seed=3) == first
    assert drawn(model, likely, temperature=1, seed=4) != first
    share = first.count(0) / DRAWS
    expected = 1 / sum(np.exp(-i / 2) for i in range(20))
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / DRAWS)


def test_the_last_seed_repeats_as_well(model: Model, likely: Any) -> None:
    last = 2**32 - 1  # llama.cpp takes it for: at random
    assert drawn(model, likely, temperature=1, seed=last) == drawn(model, likely, temperature=1, seed=last)


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({"top_k": 1}, 1),
        ({"top_k": 3}, 3),
        ({"top_k": 10**9}, 20),
        ({"top_p": 0.0}, 1),
        ({"top_p": 0.6}, 2),  # the shares are 0.39, 0.24, 0.14, …
        ({"top_p": 0.7}, 3),
        ({"min_p": 1.0}, 1),
        ({"min_p": 0.5}, 2),  # e^(-1/2) = 0.61, e^-1 = 0.37
        ({}, 20),
    ],
)
def test_a_cut_leaves_the_likeliest(model: Model, likely: Any, settings: dict[str, Any], most: int) -> None:
    found = set(drawn(model, likely, temperature=1, seed=1, **settings))
    assert found <= set(range(most))
    assert len(found) >= min(most, 8)


def test_typical_sampling_may_leave_the_likeliest_out(model: Model, likely: Any) -> None:
    p = np.exp(likely.astype(float))
    p /= p.sum()
    surprise = np.abs(-np.log(p) + (p * np.log(p)).sum())
    (nearest,) = set(drawn(model, likely, temperature=1, typical_p=0.01))
    assert nearest == surprise.argmin() - 100 != 0


def test_temperature_flattens(model: Model, likely: Any) -> None:
    cold, warm, hot = (drawn(model, likely, temperature=t, seed=1) for t in (1e-6, 1, 10))
    assert set(cold) == {0}
    assert cold.count(0) > warm.count(0) > hot.count(0)


@pytest.mark.parametrize("in_prompt", [True, False])
def test_repetition_counts_prompt_and_reply(model: Model, in_prompt: bool) -> None:
    logits = np.full(model.n_vocab, -9, np.float32)
    logits[[5, 6, 7]] = 4, 3, -1
    chooser = sampler(model, prompt=(5, 7, 5) if in_prompt else (), repetition_penalty=2)
    if not in_prompt:
        for seen in (5, 7, 5):
            chooser.accept(seen)
    assert chooser.next(logits) == 6
    assert logits[[5, 6, 7]].tolist() == [2, 3, -2]  # once, however often


def test_presence_and_frequency_count_the_reply(model: Model) -> None:
    logits = np.zeros(model.n_vocab, np.float32)
    chooser = sampler(model, prompt=(4,), presence_penalty=0.5, frequency_penalty=0.25)
    for seen in (5, 6, 5):
        chooser.accept(seen)
    chooser.next(logits)
    assert logits[[4, 5, 6, 7]].tolist() == [0, -1, -0.75, 0]


# masks


class Only:
    """Allows one token, and remembers what was chosen."""

    def __init__(self, token: int) -> None:
        self.token = token
        self.chosen: list[int] = []

    def apply(self, logits: Any) -> None:
        logits[np.arange(len(logits)) != self.token] = -np.inf

    def accept(self, token: int) -> None:
        self.chosen.append(token)


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"temperature": 5.0, "repetition_penalty": 0.1}])
def test_a_mask_comes_before_everything(model: Model, likely: Any, settings: dict[str, Any]) -> None:
    mask = Only(7)
    chooser = Sampler(model, asdict(Decoding(**settings)), (7,), mask=mask)
    assert chooser.next(likely.copy()) == 7
    chooser.accept(7)
    assert mask.chosen == [7]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_where_nothing_is_allowed_there_is_no_token(model: Model, likely: Any, temperature: float) -> None:
    chooser = Sampler(model, asdict(Decoding(temperature=temperature)), (), 'root ::= "a"', Only(token(model, "b")))
    assert chooser.next(likely.copy()) is None
    chooser = Sampler(model, asdict(Decoding(temperature=temperature)), (), mask=Only(-1))
    assert chooser.next(likely.copy()) is None


# grammars


def written(model: Model, chooser: Sampler, random: np.random.Generator) -> str:
    """A text made of random logits."""
    text = b""
    for _ in range(300):
        logits = random.normal(0, 5, model.n_vocab).astype(np.float32)
        chosen = chooser.next(logits)
        if chosen is None or chosen in model.ends:
            break
        chooser.accept(chosen)
        text += model.piece(chosen)
    return text.decode()


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_what_is_written_fits_the_grammar(model: Model, temperature: float) -> None:
    random = np.random.default_rng(5)
    for _ in range(5):
        chooser = sampler(model, 'root ::= "{" [a-c]{2,4} "🦒" ("é" | "ß") "}"', temperature=temperature)
        text = written(model, chooser, random)
        assert text[0] + text[-1] == "{}"
        assert 2 <= len(text) - 4 <= 4
        assert set(text[1:-3]) <= set("abc")
        assert text[-3] == "🦒"
        assert text[-2] in "éß"


def test_greedy_under_a_grammar_is_the_likeliest_of_all_that_is_allowed(model: Model) -> None:
    text = 'root ::= [0-9]{3} " " [a-z]{8}'
    random = np.random.default_rng(7)
    chooser, reference = sampler(model, text), Grammar(model, text)
    for _ in range(8):
        logits = random.normal(0, 5, model.n_vocab).astype(np.float32)
        allowed = reference.allows(np.arange(model.n_vocab))
        expected = int(np.where(allowed, logits, -np.inf).argmax())
        assert chooser.next(logits) == expected
        if expected in model.ends:
            break
        chooser.accept(expected)
        reference.accept(expected)


def test_a_finished_grammar_allows_nothing_but_the_end(model: Model) -> None:
    grammar = Grammar(model, 'root ::= "a"')
    grammar.accept(token(model, "a"))
    assert set(np.flatnonzero(grammar.allows(np.arange(model.n_vocab)))) <= model.ends


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ('root ::= "a\0"', "zero byte"),
        ("root ::= [a", "end of input"),
        ("nonsense", "::="),
        ("start ::= [a]", ""),
        ("root ::= other", ""),
        ('root ::= root "a"', ""),
    ],
)
def test_a_grammar_that_cannot_be_used_is_refused_with_the_reason(model: Model, text: str, says: str) -> None:
    with pytest.raises(Refused) as raised:
        Grammar(model, text)
    kind, message = raised.value.args
    assert kind == "grammar"
    assert says in message
    assert message
