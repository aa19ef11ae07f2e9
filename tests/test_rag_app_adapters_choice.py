"""Which adapters answer a question: those in use where they fit, those that are asked for or an error, else none."""

from pathlib import Path
from typing import Any

import pytest

from rag_app.adapters import registry as place
from rag_app.adapters.choice import Choice, chosen
from rag_app.adapters.manifest import GGUF, Manifest
from rag_app.adapters.registry import Registry, Use
from rag_app.errors import AdapterInvalid, AdapterNotFound
from rag_app.prompt import PROMPT_VERSION
from rag_app.settings import Options
from tests.conftest import ScriptedModel


class Adaptable(ScriptedModel):
    """A model of known weights that takes adapters by their files."""

    abilities = frozenset({"adapters"})
    weights = "cafe"

    def fingerprint(self) -> str:
        return self.weights

    def adapter(self, entry: Any) -> str:
        if entry.gguf is None:
            raise AdapterInvalid(f"'{entry.name}' has no form for this engine")
        return str(entry.gguf)


def put(folder: Path, name: str, **facts: Any) -> None:
    """An adapter in a folder that nobody looks into."""
    from index import folders

    with folders.staged(folder / name) as part:
        (part / GGUF).write_text("adapter")
        known = {"base": {"name": "small", "fingerprint": "cafe"}, "prompt_version": PROMPT_VERSION, **facts}
        Manifest(name=name, **known).write(part)


@pytest.fixture
def adapters(tmp_path: Path, nothing_bundled: None) -> Registry:
    made = Registry(tmp_path)
    for name, facts in (
        ("one", {}),
        ("two", {}),
        ("foreign", {"base": {"name": "other", "fingerprint": "beef"}}),
    ):
        put(made.root, name, **facts)
    return made


def file(adapters: Registry, name: str) -> str:
    return str(adapters.root / name / GGUF)


def test_none_is_in_use(adapters: Registry) -> None:
    assert chosen(Adaptable(), Options(), adapters) == Choice()


def test_those_in_use_come_with_their_weights(adapters: Registry) -> None:
    adapters.use([Use("one"), Use("two", 0.5)])
    uses = ((file(adapters, "one"), 1.0), (file(adapters, "two"), 0.5))
    assert chosen(Adaptable(), Options(), adapters) == Choice(uses, ("one", "two:0.5"))


def test_what_is_asked_for_takes_their_place(adapters: Registry) -> None:
    adapters.use([Use("one")])
    assert chosen(Adaptable(), Options(adapter="two:2"), adapters) == Choice(
        ((file(adapters, "two"), 2.0),), ("two:2",)
    )
    assert chosen(Adaptable(), Options(adapter="off"), adapters) == Choice()


@pytest.mark.parametrize(
    ("wanted", "kind", "told"),
    [
        ("none", AdapterNotFound, "there is no adapter 'none'"),
        ("foreign", AdapterInvalid, "was trained on 'other' .beef., and 'scripted.gguf' .cafe. has other weights"),
        ("one,foreign", AdapterInvalid, "was trained on 'other'"),
    ],
)
def test_what_is_asked_for_and_does_not_fit_is_an_error(
    adapters: Registry, wanted: str, kind: type[Exception], told: str
) -> None:
    with pytest.raises(kind, match=told):
        chosen(Adaptable(), Options(adapter=wanted), adapters)


def test_what_is_in_use_and_does_not_fit_the_model_is_left_out_with_a_note(adapters: Registry) -> None:
    adapters.use([Use("foreign")])
    found = chosen(Adaptable(), Options(), adapters)
    assert (found.uses, found.names, len(found.notes)) == ((), (), 1)
    assert found.notes[0].startswith("answered without an adapter: the adapter 'foreign' was trained on 'other'")


def test_engines_without_adapters_answer_without(adapters: Registry) -> None:
    adapters.use([Use("one")])
    assert chosen(ScriptedModel(), Options(), adapters) == Choice()
    assert chosen(ScriptedModel(), Options(adapter="off"), adapters) == Choice()
    with pytest.raises(AdapterInvalid, match="the engine 'scripted' takes no adapters"):
        chosen(ScriptedModel(), Options(adapter="one"), adapters)


def test_where_nobody_knows_the_weights_a_person_does(adapters: Registry) -> None:
    model = Adaptable()
    model.weights = ""
    adapters.use([Use("foreign")])
    assert chosen(model, Options(), adapters).names == ("foreign",)


def test_the_bundled_one_answers_its_own_model_and_strategy_alone(
    adapters: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "shipped")
    monkeypatch.setattr(place, "BUNDLED", tmp_path / "shipped")
    assert chosen(Adaptable(), Options(), adapters).names == ("shipped",)
    assert chosen(Adaptable(), Options(strategy="react"), adapters) == Choice()
    for weights in ("beef", ""):
        other = Adaptable()
        other.weights = weights
        assert chosen(other, Options(), adapters) == Choice()
    assert chosen(Adaptable(), Options(strategy="react", adapter="shipped"), adapters).names == ("shipped",)
    adapters.use([Use("shipped")])
    assert chosen(Adaptable(), Options(strategy="react"), adapters).names == ("shipped",)
    adapters.off()
    assert chosen(Adaptable(), Options(), adapters) == Choice()
