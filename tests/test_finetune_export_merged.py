"""Adapters in a model's weights, in memory and as a folder, against the adapter beside them; llama.cpp's converter."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from finetune import methods
from finetune.config import Method, checked
from finetune.errors import CheckpointInvalid, ExportInvalid, MethodInvalid
from finetune.evaluation.adapters import Adapter
from finetune.export import converter
from finetune.export.merged import fold, merged, save
from finetune.training import nf4
from index.folders import staged
from rag_app.decoding import Decoding
from rag_app.engines import checkpoints
from rag_app.engines.checkpoints import Source
from rag_app.engines.huggingface import TransformersChat
from rag_app.errors import ModelInvalid
from tests.test_finetune_gguf import bytewise, tiny

TOKENS = torch.arange(100, 160)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in bf16, its head tied to its embeddings."""
    folder = tmp_path_factory.mktemp("models") / "base"
    tokenizer = bytewise()
    tiny(len(tokenizer), tie_word_embeddings=True).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def source(base: Path) -> Source:
    return checkpoints.find(str(base))


def opened(folder: Path, dtype: Any = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def adapter(base: Path, folder: Path, method: Method, **settings: Any) -> Adapter:
    """One that changes the model a good deal."""
    config = checked({"adapter": method, "lora_r": 4, "max_steps": 10, **settings}, "test")
    trained = methods.attach(opened(base, torch.bfloat16), config, checkpoints.tokenizer(checkpoints.find(str(base))))
    torch.manual_seed(5)
    for one in trained.parameters():
        if one.requires_grad:
            one.data += torch.randn_like(one) * 0.05
    methods.save(trained, folder, config)
    return Adapter(folder)


def logits(model: Any) -> Any:
    with torch.inference_mode():
        return model.float()(TOKENS).logits


def difference(one: Any, other: Any) -> float:
    """Relative to the logits' spread."""
    return float((one - other).abs().max() / other.std())


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("lora", {}),
        ("dora", {}),
        ("ia3", {}),
        ("vera", {"lora_r": 16}),
        ("adalora", {}),
        ("relora", {}),
        ("lora", {"lora_target_modules": ["q_proj", "lm_head"]}),
        ("lora", {"lora_target_modules": ["q_proj", "embed_tokens"]}),
    ],
)
def test_a_merged_model_says_what_the_adapter_does(
    method: Method, settings: Any, base: Path, source: Source, tmp_path: Path
) -> None:
    made = adapter(base, tmp_path / "adapter", method, **settings)
    right = logits(methods.load(opened(base), made.folder))
    assert difference(logits(opened(base)), right) > 0.05
    model, _ = merged(made, source, width="f32")
    assert type(model) is type(opened(base))
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert difference(logits(model), right) < 1e-4
    half, tokenizer = merged(made, source)
    assert {one.dtype for one in half.parameters()} == {torch.bfloat16}
    assert half.model.rotary_emb.inv_freq.dtype == torch.float32
    with staged(tmp_path / "merged") as part:
        save(half, tokenizer, part)
    again = opened(tmp_path / "merged", "auto")
    assert again.dtype == torch.bfloat16
    assert torch.equal(logits(again), logits(half))
    assert difference(logits(half), right) < 0.2


def test_16_bits_are_rounded_to_once(base: Path, source: Source, tmp_path: Path) -> None:
    made = adapter(base, tmp_path / "adapter", "lora")
    (exact, _), (once, _) = merged(made, source, width="f32"), merged(made, source)
    twice = methods.merge(methods.load(opened(base, torch.bfloat16), made.folder))
    assert all(torch.equal(a.bfloat16(), b) for a, b in zip(exact.parameters(), once.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(twice.parameters(), once.parameters(), strict=True))
    half, _ = merged(made, source, width="f16")
    assert difference(logits(half), logits(exact)) < 0.3 * difference(logits(once), logits(exact))


def test_the_base_is_the_original_or_as_nf4_holds_it(base: Path, source: Source, tmp_path: Path) -> None:
    made = adapter(base, tmp_path / "adapter", "qlora")
    rounded = opened(base, torch.bfloat16)
    assert nf4.rounded_(rounded) == 2 * 7
    right = logits(methods.load(rounded.float(), made.folder))
    assert difference(logits(merged(made, source, "dequantised", "f32")[0]), right) < 1e-4
    assert difference(logits(merged(made, source, "original", "f32")[0]), right) > 0.1
    model, tokenizer = merged(None, source, "dequantised")
    save(model, tokenizer, tmp_path / "merged")
    config = json.loads((tmp_path / "merged/config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert not any("quant" in key for key in config)


def test_what_is_folded_in_memory_is_saved_in_16_bits(base: Path, tmp_path: Path) -> None:
    made = adapter(base, tmp_path / "adapter", "lora")
    right = logits(methods.load(opened(base), made.folder))
    model = fold(methods.load(opened(base), made.folder), torch.float32)
    assert difference(logits(model), right) < 1e-4
    save(model, bytewise(), tmp_path / "merged")
    assert opened(tmp_path / "merged", "auto").dtype == torch.bfloat16
    save(model, bytewise(), tmp_path / "half", "f16")
    assert opened(tmp_path / "half", "auto").dtype == torch.float16


def test_a_run_that_trained_every_weight_is_the_model_itself(base: Path, source: Source, tmp_path: Path) -> None:
    made = adapter(base, tmp_path / "adapter", "full")
    bytewise().save_pretrained(made.folder)
    model, tokenizer = merged(made, source, "dequantised")
    assert torch.equal(logits(model), logits(opened(made.folder)))
    assert tokenizer.chat_template == bytewise().chat_template


def test_a_saved_folder_is_served(base: Path, source: Source, tmp_path: Path) -> None:
    made = adapter(base, tmp_path / "adapter", "lora")
    model, tokenizer = merged(made, source)
    save(model, tokenizer, tmp_path / "merged")
    assert checkpoints.tokenizer(checkpoints.find(str(tmp_path / "merged"))).chat_template == tokenizer.chat_template
    engine = TransformersChat(
        path=str(tmp_path / "merged"), device="cpu", decoding=Decoding(max_tokens=4, temperature=0)
    )
    reply = list(engine.stream([("user", "How long is its tongue?")]))
    assert reply[-1].response_metadata["finish_reason"] in ("stop", "length")
    assert sum(one.usage_metadata["output_tokens"] for one in reply if one.usage_metadata) > 0


@pytest.mark.parametrize("method", ["prompt-tuning", "llama-adapter", "adapter"])
def test_what_is_no_change_of_weights_is_refused(method: Method, base: Path, source: Source, tmp_path: Path) -> None:
    made = adapter(base, tmp_path / "adapter", method)
    with pytest.raises(MethodInvalid, match="cannot be merged") as raised:
        merged(made, source)
    assert "\n" not in str(raised.value)


def test_a_base_that_cannot_be_read_is_one_line(base: Path, source: Source, tmp_path: Path) -> None:
    model = opened(base)
    weights = {name: one for name, one in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(tmp_path / "lacking", state_dict=weights)
    bytewise().save_pretrained(tmp_path / "lacking")
    with pytest.raises(ModelInvalid, match=r"'lacking' lacks some of its weights, model\.layers\.1\.mlp"):
        merged(None, checkpoints.find(str(tmp_path / "lacking")))
    config = json.loads((tmp_path / "lacking/config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "lacking/config.json").write_text(json.dumps(config))
    with pytest.raises(MethodInvalid, match="'lacking' are quantised, and would be rounded once more"):
        merged(None, checkpoints.find(str(tmp_path / "lacking")))
    (tmp_path / "lacking/model.safetensors").write_bytes(b"no")
    (tmp_path / "lacking/config.json").write_bytes((base / "config.json").read_bytes())
    with pytest.raises(ModelInvalid, match="cannot be loaded"):
        merged(None, checkpoints.find(str(tmp_path / "lacking")))
    made = adapter(base, tmp_path / "adapter", "lora")
    (made.folder / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointInvalid):
        merged(made, source)


SCRIPT = """import json, pathlib, sys
print("loading", flush=True)
pathlib.Path(sys.argv[3]).write_text(json.dumps(sys.argv[1:]))
print("Writing:  50%|#####", file=sys.stderr)
"""


def test_llama_cpps_converter_writes_the_file(base: Path, tmp_path: Path) -> None:
    (tmp_path / converter.NAME).write_text(SCRIPT)
    for script in (tmp_path, tmp_path / converter.NAME):
        converter.convert(script, base, tmp_path / "model.gguf", "Q8_0")
        folder, *options = json.loads((tmp_path / "model.gguf").read_text())
        assert (folder, options) == (
            str(base), ["--outfile", str(tmp_path / ".model.gguf.part"), "--outtype", "q8_0"]
        )  # fmt: skip
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {converter.NAME, "model.gguf"}


@pytest.mark.parametrize(
    ("ending", "says"),
    [
        ("sys.exit('ERROR: Model\\n  of a kind not known\\n')", r"\(exit code 1\): of a kind not known"),
        ("pathlib.Path(sys.argv[3]).unlink()", r"\(exit code 0\): loading"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", r"\(SIGKILL\): loading"),
    ],
)
def test_a_converter_that_fails_is_one_line(ending: str, says: str, base: Path, tmp_path: Path) -> None:
    (tmp_path / "convert.py").write_text(SCRIPT + ending)
    (tmp_path / "model.gguf").write_text("was here before")
    with pytest.raises(ExportInvalid, match=says) as raised:
        converter.convert(tmp_path / "convert.py", base, tmp_path / "model.gguf", "f16")
    assert "\n" not in str(raised.value)
    assert (tmp_path / "model.gguf").read_text() == "was here before"
    assert not (tmp_path / ".model.gguf.part").exists()


def test_no_converter_is_said(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportInvalid, match="nor a folder with it"):
        converter.convert(tmp_path, base, tmp_path / "model.gguf", "f16")
