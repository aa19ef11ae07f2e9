"""Adapters put onto llama.cpp and taken off again: each answers as it would in a process that knows no other."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rag_app.engines.decoder import Decoder, cut
from rag_app.engines.loras import Loras, Use
from rag_app.engines.native import Model, Refused
from rag_app.models import locate

ALONE = """
import sys
import numpy as np
from rag_app.engines.decoder import Decoder, cut
from rag_app.engines.native import Model
from rag_app.models import locate

out, text, *uses = sys.argv[1:]
model = Model(str(locate()), 512)
decoder = Decoder(model, slots=2)
adapters = [(path, float(weight)) for path, weight in zip(uses[::2], uses[1::2])]
list(decoder.read(cut([(model.tokens(text, False), True)], 32), adapters=adapters))
np.save(out, decoder.logits())
"""
TEXT = "The okapi lives in the Ituri rainforest of the Congo. Its tongue is 45 centimetres long. " * 3


def write_lora(file: Path, seed: int, rank: int = 4, scale: float = 0.5, layers: int = 30) -> Path:
    """A small random adapter for the bundled model, of one layer's values and the output of the MLP."""
    from gguf import GGUFWriter

    draws = np.random.default_rng(seed)
    writer = GGUFWriter(file, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    for layer in (0, layers - 1):
        for name, wide, high in (("attn_v", 576, 192), ("ffn_down", 1536, 576)):
            a, b = draws.normal(size=(rank, wide)), draws.normal(size=(high, rank))
            for part, values in (("lora_a", a), ("lora_b", b)):
                tensor = (values * scale / wide**0.5).astype(np.float16)
                writer.add_tensor(f"blk.{layer}.{name}.weight.{part}", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("loras")
    one, other = (write_lora(folder / f"{seed}.gguf", seed, scale=4) for seed in (1, 2))
    return str(one), str(other)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(str(locate()), 512)


@pytest.fixture
def decoder(model: Model) -> Decoder:
    return Decoder(model, slots=2)


def read(decoder: Decoder, model: Model, uses: Sequence[Use], text: str = TEXT) -> tuple[int, Any]:
    """How many tokens were taken over, and the logits after the text."""
    first, *_ = decoder.read(cut([(model.tokens(text, False), True)], 32), adapters=uses)
    return first, decoder.logits().copy()


def alone(folder: Path, uses: Sequence[Use]) -> Any:
    """The logits of a process that has done nothing else."""
    given = [str(part) for use in uses for part in use]
    subprocess.run([sys.executable, "-c", ALONE, str(folder / "logits.npy"), TEXT, *given], check=True)
    return np.load(folder / "logits.npy")


def test_after_swaps_logits_are_those_of_a_fresh_process(
    decoder: Decoder, model: Model, loras: tuple[str, str], tmp_path: Path
) -> None:
    one, other = loras
    ways: list[list[Use]] = [[], [(one, 1.0)], [(other, 1.0)], [(one, 1.0), (other, 0.5)]]
    fresh = [alone(tmp_path, uses) for uses in ways]
    for n in (0, 1, 2, 3, 1, 0, 3, 2, 0):
        assert np.array_equal(read(decoder, model, ways[n])[1], fresh[n]), n
    distances = [abs(a - b).max() for i, a in enumerate(fresh) for b in fresh[:i]]
    assert min(distances) > 0.05  # so that a mistaken one would show


def test_nothing_read_with_another_adapter_is_taken_over(
    decoder: Decoder, model: Model, loras: tuple[str, str]
) -> None:
    one, other = loras
    count = len(model.tokens(TEXT, False))
    assert read(decoder, model, [])[0] == 0
    assert read(decoder, model, [(one, 1.0)])[0] == 0
    assert read(decoder, model, [(one, 0.5)])[0] == 0, "another weight is another model"
    assert read(decoder, model, [(other, 1.0)])[0] == 0
    assert read(decoder, model, [(other, 1.0)])[0] == count, "the same is taken over"


def test_conversations_with_different_adapters_keep_what_they_have_read(
    decoder: Decoder, model: Model, loras: tuple[str, str]
) -> None:
    one, _ = loras
    count = len(model.tokens(TEXT, False))
    assert [read(decoder, model, uses)[0] for uses in ([], [(one, 1.0)], [], [(one, 1.0)])] == [0, 0, count, count]


def test_a_weight_of_0_is_no_adapter(decoder: Decoder, model: Model, loras: tuple[str, str]) -> None:
    plain = read(decoder, model, [])[1]
    reused, same = read(decoder, model, [(loras[0], 0.0)])
    assert reused and np.array_equal(plain, same)


def test_a_file_that_is_replaced_is_loaded_anew(decoder: Decoder, model: Model, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "lora.gguf", 1, scale=4)
    before = read(decoder, model, [(str(file), 1.0)])[1]
    write_lora(tmp_path / "next.gguf", 2, scale=4).replace(file)
    reused, after = read(decoder, model, [(str(file), 1.0)])
    assert reused == 0 and abs(before - after).max() > 0.05


def test_many_adapters_are_not_all_kept(decoder: Decoder, model: Model, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("rag_app.engines.loras.MOST", 2)
    files = [str(write_lora(tmp_path / f"{n}.gguf", n, scale=4)) for n in range(4)]
    first = [read(decoder, model, [(file, 1.0)])[1] for file in files]
    again = [read(decoder, model, [(file, 1.0)])[1] for file in files]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    kept: Loras = decoder._loras
    assert len(kept._loaded) <= 2


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[dict[str, Path]]:
    whole = write_lora(tmp_path / "whole.gguf", 1)
    cut_short, other = tmp_path / "cut.gguf", tmp_path / "other.gguf"
    cut_short.write_bytes(whole.read_bytes()[:3000])
    write_lora(other, 1, layers=50)
    yield {"cut": cut_short, "of another model": other, "missing": tmp_path / "none.gguf", "a model": locate()}


@pytest.mark.parametrize("what", ["cut", "of another model", "missing", "a model"])
def test_what_is_no_adapter_of_this_model_is_refused_and_the_rest_goes_on(
    what: str, broken: dict[str, Path], decoder: Decoder, model: Model
) -> None:
    before = read(decoder, model, [])[1]
    with pytest.raises(Refused) as caught:
        read(decoder, model, [(str(broken[what]), 1.0)])
    assert caught.value.args[0] == "adapter" and str(broken[what]) in caught.value.args[1]
    assert np.array_equal(read(decoder, model, [])[1], before)


def test_the_engine_answers_with_the_adapter_that_is_asked_for(real_model: Any, loras: tuple[str, str]) -> None:
    asked = [("user", "Name three colours.")]

    def reply(*uses: Use) -> str:
        return "".join(chunk.text for chunk in real_model.stream(asked, max_tokens=12, adapters=uses))

    plain = reply()
    changed = reply((loras[0], 1.0))
    assert plain != changed
    assert (reply(), reply((loras[0], 1.0))) == (plain, changed)


def test_a_damaged_adapter_ends_one_answer_in_words(real_model: Any, tmp_path: Path) -> None:
    from rag_app.errors import AdapterInvalid

    file = tmp_path / "none.gguf"
    with pytest.raises(AdapterInvalid, match=f"{file}.*rag-app adapters off"):
        list(real_model.stream([("user", "Hello")], adapters=[(str(file), 1.0)]))
    assert list(real_model.stream([("user", "Hello")], max_tokens=1))
