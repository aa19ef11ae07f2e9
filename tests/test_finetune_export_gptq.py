"""GPTQ: what is refused, what it is calibrated on, and, where gptqmodel is installed, what comes out."""

import json
import random
from contextlib import chdir
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from finetune.errors import ExportInvalid
from finetune.example import Example, write_examples
from finetune.export import calibration, gptq
from index.errors import NoIndex
from rag_app.decoding import Decoding
from rag_app.engines import checkpoints
from rag_app.engines.huggingface import TransformersChat
from rag_app.engines.layout import Layout

needs_gptqmodel = pytest.mark.skipif(
    not (find_spec("gptqmodel") and find_spec("optimum")), reason="needs gptqmodel: run pip install 'rag-app[gptq]'"
)


@pytest.fixture(scope="module")
def layout(small_base: Path) -> Layout:
    return Layout("small", AutoTokenizer.from_pretrained(small_base))


def tiny(base: Path, to: Path, width: int = 64) -> Path:
    """A model of two layers with random weights, and the tokenizer of the bundled one."""
    config = AutoConfig.from_pretrained(base)
    config.hidden_size, config.intermediate_size, config.head_dim = width, 2 * width, width // 4
    config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads = 2, 4, 2
    torch.manual_seed(1)
    model: Any = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.save_pretrained(to)
    AutoTokenizer.from_pretrained(base).save_pretrained(to)
    return to


def shape(base: Path, width: int) -> Any:
    config = AutoConfig.from_pretrained(base)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = width, 1536, 1
    config.head_dim, config.num_attention_heads, config.num_key_value_heads = 16, width // 16, width // 16
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.fixture
def with_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "find_spec", lambda name: name in checkpoints.EXTRAS["gptq"][0])


@pytest.mark.parametrize(
    ("width", "bits", "group_size", "says"),
    [
        (576, 4, 128, r"rows of 576 weights.*groups of 128: give --group-size 32 or 64 or -1 "),
        (576, 4, 100, r"rows of 576 weights.*groups of 100: give --group-size 32 or 64 or -1 "),
        (512, 8, 0, r"rows of 512 weights.*groups of 0: give --group-size 32 or 64 or 128 or -1 "),
        (48, 4, -1, r"packs weights by 32, and the model has rows of 48: export it as GGUF"),
        (576, 3, 64, r"3 are asked for: give --bits 4 or 8"),
    ],
)
@pytest.mark.usefixtures("with_packages")
def test_what_cannot_be_divided_is_refused(small_base: Path, width: int, bits: int, group_size: int, says: str) -> None:
    with pytest.raises(ExportInvalid, match=says) as raised:
        gptq.check(shape(small_base, width), bits, group_size)
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("with_packages")
@pytest.mark.parametrize("group_size", [32, 64, -1])
def test_what_divides_every_row_is_taken(small_base: Path, group_size: int) -> None:
    gptq.check(shape(small_base, 576), 4, group_size)


@pytest.mark.parametrize("missing", ["gptqmodel", "optimum"])
def test_without_the_packages_the_remedy_is_told(
    small_base: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "find_spec", lambda name: name != missing)
    with pytest.raises(ExportInvalid, match=rf"GPTQ needs {missing}: run pip install 'rag-app\[gptq\]'$"):
        gptq.check(shape(small_base, 576), 4, 64)


@pytest.mark.usefixtures("with_packages")
def test_no_text_is_refused(small_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportInvalid, match=r"no text to calibrate.*--data FILE"):
        gptq.write(small_base, tmp_path, 4, 64, [[], []])


@pytest.mark.usefixtures("with_packages")
def test_a_process_that_fails_says_why_and_leaves_nothing(small_base: Path, tmp_path: Path) -> None:
    """Of files that end early, or, without gptqmodel, that it is missing: the check is told that it is there."""
    source = tiny(small_base, tmp_path / "source")
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportInvalid, match=r"gptqmodel cannot quantise the model \(\w+Error: .*\): ") as raised:
        gptq.write(source, tmp_path / "out", 4, 64, [[1, 2, 3]])
    assert "\n" not in str(raised.value)
    assert not list((tmp_path / "out").iterdir())


def test_examples_are_drawn_with_their_answers(layout: Layout, tmp_path: Path) -> None:
    asked = [
        Example(str(n), "question_answering", f"What is {n}?", f"Number {n}.", (f"The number {n} is odd.",))
        for n in range(40)
    ]
    file = tmp_path / "data.jsonl"
    write_examples(asked, file)
    drawn = calibration.draw(file, layout, 8)
    right = [[*layout.prompt(one.messages()), *layout.answer(one.answer)] for one in asked]
    assert len(drawn) == 8
    assert all(row in right for row in drawn)
    assert drawn == calibration.draw(file, layout, 8) != calibration.draw(file, layout, 8, seed=1)


def test_an_index_gives_prompts_about_its_passages(real_index: Path, layout: Layout) -> None:
    drawn = [layout.tokenizer.decode(row) for row in calibration.draw(real_index, layout)]
    for words in (
        "The okapi lives in the Ituri rainforest.",
        "14 euros a day",
        "Change the oil every 7500 kilometres.",
    ):
        assert sum(words in text for text in drawn) == 1
    assert all("<|im_start|>user" in text and "[1] " in text for text in drawn)


def test_as_many_texts_are_drawn_as_are_needed(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [Example(str(n), "text_generation", "word " * 40, "word") for n in range(9)]
    monkeypatch.setattr(calibration, "ENOUGH", 100)
    monkeypatch.setattr(calibration, "LONGEST", 30)
    assert list(map(len, calibration.rows(examples, layout, "here"))) == [30] * 4
    with pytest.raises(ExportInvalid, match="'here' holds no text to calibrate on"):
        calibration.rows([], layout, "here")
    with pytest.raises(NoIndex):
        calibration.draw(tmp_path, layout)


def unpacked(folder: Path) -> dict[str, torch.Tensor]:
    """The weights as GPTQ's first format has them, by its definition: scale * (number - zero - 1)."""
    bits = json.loads((folder / "config.json").read_bytes())["quantization_config"]["bits"]
    held, shifts = load_file(folder / "model.safetensors"), torch.arange(0, 32, bits)
    plain = {name: held[name] for name in held if not name.endswith(("qweight", "qzeros", "scales", "g_idx"))}
    for name in (name.removesuffix("qweight") for name in held if name.endswith("qweight")):
        packed, zeros = held[f"{name}qweight"], held[f"{name}qzeros"]
        numbers = (packed[:, None] >> shifts[:, None] & 2**bits - 1).flatten(0, 1)  # (inputs, outputs)
        offsets = (zeros[..., None] >> shifts & 2**bits - 1).flatten(1) + 1  # (groups, outputs)
        group = held[f"{name}g_idx"].long()
        plain[f"{name}weight"] = ((numbers - offsets[group]) * held[f"{name}scales"].float()[group]).T.contiguous()
    return plain


def rounded(source: Path, to: Path, bits: int, group_size: int) -> Path:
    """A model whose weights are rounded to the nearest, in the same format."""
    to.mkdir()
    config = json.loads((source / "config.json").read_bytes())
    how = {"quant_method": "gptq", "bits": bits, "group_size": group_size, "desc_act": False, "sym": True}
    (to / "config.json").write_text(json.dumps({**config, "quantization_config": how, "dtype": "float32"}))
    held: dict[str, torch.Tensor] = {}
    half, shifts = 2 ** (bits - 1), torch.arange(0, 32, bits, dtype=torch.int32)
    for name, weight in load_file(source / "model.safetensors").items():
        if not name.endswith("proj.weight"):
            held[name] = weight
            continue
        size = group_size if group_size > 0 else weight.shape[1]
        groups = weight.float().T.unflatten(0, (-1, size))  # (groups, inputs of each, outputs)
        scales = groups.abs().amax(1) / (half - 1)
        numbers = (groups / scales[:, None]).round().flatten(0, 1).int() + half
        parts = numbers.unflatten(0, (-1, len(shifts))) << shifts[:, None]
        name = name.removesuffix("weight")
        held |= {f"{name}qweight": parts.sum(1, dtype=torch.int32), f"{name}scales": scales.half()}
        zeros = int(((half - 1) << shifts.long()).sum())
        held[f"{name}qzeros"] = torch.full((len(scales), scales.shape[1] // len(shifts)), zeros, dtype=torch.int32)
        held[f"{name}g_idx"] = torch.arange(len(numbers), dtype=torch.int32) // size
    save_file(held, to / "model.safetensors", {"format": "pt"})
    AutoTokenizer.from_pretrained(source).save_pretrained(to)
    return to


def logits(model: Any, row: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(torch.tensor([row])).logits[0].float()
    return found


def plain(source: Path, weights: dict[str, torch.Tensor]) -> Any:
    """A model of 32 bits with other weights than its own."""
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    assert not model.load_state_dict(weights, strict=False).unexpected_keys
    return model


@pytest.fixture(scope="module")
def made(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model in 4 bits, what it was made of, and what was told meanwhile."""
    work = tmp_path_factory.mktemp("gptq")
    source, folder, steps = tiny(small_base, work / "source"), work / "made", []
    folder.mkdir()
    chance = random.Random(1)
    rows = [[chance.randrange(1000) for _ in range(50)] for _ in range(8)]
    with chdir(work):
        gptq.write(source, folder, 4, 32, rows, lambda *step: steps.append(step))
    return {"source": source, "folder": folder, "steps": steps, "rows": rows}


@needs_gptqmodel
def test_weights_are_made_and_the_rest_taken_over(made: dict[str, Any]) -> None:
    source, folder = made["source"], made["folder"]
    assert made["steps"] == [("quantising", done, 2) for done in (0, 1, 2)]
    assert {one.name for one in folder.iterdir()} == {one.name for one in source.iterdir()}
    assert {one.name for one in folder.parent.iterdir()} == {"source", "made"}  # the current one then: no logs
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (folder / name).read_bytes() == (source / name).read_bytes()
    config = json.loads((folder / "config.json").read_bytes())
    how = config.pop("quantization_config")
    assert config == json.loads((source / "config.json").read_bytes())
    assert how.pop("meta")["quantizer"][0].startswith("gptqmodel:")
    assert how == {
        "quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True, "lm_head": False,
        "checkpoint_format": "gptq", "pack_dtype": "int32",
    }  # fmt: skip
    size = (folder / "model.safetensors").stat().st_size
    assert gptq.expected(plain(source, {}), 4, 32) == pytest.approx(size, rel=0.01)


@needs_gptqmodel
def test_what_was_made_is_served_and_says_nothing_on_stdout(
    made: dict[str, Any], small_base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chat = TransformersChat(path=str(made["folder"]), device="cpu", decoding=Decoding(max_tokens=5))
    assert chat.invoke("What is an okapi?").usage_metadata["output_tokens"] == 5  # type: ignore[index]
    assert capfd.readouterr().out == ""
    model = chat._loaded().forward._model
    for row in made["rows"][:2]:
        right, was = (
            logits(plain(made["source"], unpacked(made["folder"])), row),
            logits(plain(made["source"], {}), row),
        )
        assert (logits(model, row) - right).abs().max() < 0.05 * right.std()
        assert 0 < (right - was).std() < 0.5 * was.std()


@needs_gptqmodel
@pytest.mark.parametrize(("bits", "group_size"), [(8, 32), (4, -1)])
def test_what_has_no_kernel_of_its_own_is_served_without_a_compiler(
    small_base: Path, tmp_path: Path, bits: int, group_size: int
) -> None:
    source = tiny(small_base, tmp_path / "source", 96)
    folder = rounded(source, tmp_path / "rounded", bits, group_size)
    model, _ = checkpoints.load(checkpoints.find(str(folder)), "auto", "cpu")
    row = list(range(100, 120))
    right = logits(plain(source, unpacked(folder)), row)
    assert (logits(model, row) - right).abs().max() < 0.05 * right.std()
    kernels = [one for one in model.modules() if hasattr(one, "enable_weight_cache")]
    assert len(kernels) == 14
    assert not any("dequantize_weight" in vars(one) for one in kernels)  # where PyTorch's compiler would be
