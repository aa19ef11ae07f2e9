"""GGUF files that we write, as llama.cpp reads them, against Transformers and against the bundled file."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from finetune.errors import ExportInvalid
from finetune.export import gguf, vocabulary
from finetune.export.quantise import quantise
from rag_app.engines.native import Model
from rag_app.models import locate

TEMPLATE = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"
TEXTS = ("def main():\n    return 1\n\n2. Okapis, ￼ and 12,345.67 naïve cafés — don't we'LL\t\tsee?", vocabulary.TRAPS)


@pytest.fixture(scope="module")
def small(small_base: Path) -> tuple[Any, Any]:
    model: Any = AutoModelForCausalLM.from_pretrained(small_base, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(small_base)


@pytest.fixture(scope="module")
def file(small: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "small-f16.gguf"
    gguf.write(*small, path)
    return path


@pytest.fixture(scope="module")
def read(file: Path) -> GGUFReader:
    return GGUFReader(file)


def logits(file: Path, tokens: list[int]) -> Any:
    import llama_cpp

    llama = llama_cpp.Llama(str(file), n_ctx=512, logits_all=True, verbose=False)
    llama.eval(tokens)
    found = np.array(llama.scores[: len(tokens)])
    llama.close()
    return found


def theirs(model: Any, tokens: list[int]) -> Any:
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0].float().numpy()


def metadata(read: GGUFReader) -> dict[str, Any]:
    return {name: field.contents() for name, field in read.fields.items()}


def test_logits_are_those_of_transformers(small: tuple[Any, Any], file: Path) -> None:
    tokens = small[1].encode("The okapi lives in the Ituri rainforest. Its tongue is 45 centimetres long.")
    right = theirs(small[0], tokens)
    assert np.abs(logits(file, tokens) - right).max() < 1e-3 * np.abs(right).max()


def test_tokens_are_those_of_transformers(small: tuple[Any, Any], file: Path) -> None:
    model = Model(str(file), 64, vocab_only=True)
    for text in TEXTS:
        right = small[1].encode(text, add_special_tokens=False, split_special_tokens=True)
        assert model.tokens(text, special=False) == right
    marked = "<|im_start|>user\nHi<|im_end|>\n"
    assert model.tokens(marked, special=True) == small[1].encode(marked, add_special_tokens=False)
    assert model.template == small[1].chat_template
    assert (model.bos, model.eos, model.begin) == ("<|im_start|>", "<|im_end|>", [])


def test_metadata_is_that_of_the_bundled_file(read: GGUFReader) -> None:
    ours, bundled = metadata(read), metadata(GGUFReader(locate()))
    other = {"general.name", "general.file_type", "llama.block_count", "GGUF.tensor_count", "GGUF.kv_count"}
    about = {"general.organization", "general.finetune", "general.basename", "general.size_label", "general.license"}
    assert bundled.keys() - ours.keys() == about | {"general.languages"}
    assert ours.keys() - bundled.keys() == {
        "llama.attention.key_length",
        "llama.attention.value_length",
        "tokenizer.ggml.add_eos_token",
    }
    for name in ours.keys() & bundled.keys() - other:
        assert ours[name] == bundled[name], name
    assert (ours["general.file_type"], ours["llama.block_count"]) == (1, 2)
    assert ours["tokenizer.ggml.pre"] == "smollm"


def test_tensors_are_those_of_the_model(small: tuple[Any, Any], read: GGUFReader) -> None:
    tensors = {tensor.name: tensor.data for tensor in read.tensors}
    assert len(tensors) == 2 + 2 * 9
    assert "output.weight" not in tensors  # tied
    layer = small[0].model.layers[1]
    assert tensors["blk.1.attn_norm.weight"].dtype == np.float32
    assert np.array_equal(tensors["blk.1.ffn_up.weight"], layer.mlp.up_proj.weight.data.half().numpy())
    keys = layer.self_attn.k_proj.weight.data.half().numpy().reshape(3, 2, 32, 576)  # three heads of two halves
    found = tensors["blk.1.attn_k.weight"].reshape(3, 32, 2, 576)
    assert np.array_equal(found, keys.swapaxes(1, 2))


def test_quantises_in_process(small: tuple[Any, Any], file: Path, tmp_path: Path, capfd: Any) -> None:
    quantise(file, tmp_path / "small.gguf", "Q4_0")
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "small.gguf").stat().st_size < 0.6 * file.stat().st_size
    tokens = small[1].encode("The okapi lives in the Ituri rainforest.")
    found = logits(tmp_path / "small.gguf", tokens)
    assert np.corrcoef(found.ravel(), theirs(small[0], tokens).ravel())[0, 1] > 0.98


def tiny(tokens: int, **settings: Any) -> Any:
    torch.manual_seed(3)
    shape = {
        "vocab_size": tokens, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    }  # fmt: skip
    config = LlamaConfig(**{**shape, **settings})
    model: Any = LlamaForCausalLM(config)
    for name, value in model.named_parameters():
        value.data = torch.randn_like(value) * (0.1 if "proj" in name else 1.0)
    return model.eval()


def bytewise() -> Any:
    """A tokenizer as Llama 3 has it."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([Path(__file__).read_text("utf-8")], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )  # fmt: skip


def sentencepiece() -> Any:
    """A tokenizer as Llama 2 has it."""
    inner = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    marks = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=marks[:3], show_progress=False)
    inner.train_from_iterator([Path(__file__).read_text("utf-8")], trainer)
    model = json.loads(inner.to_str())
    words = [word for word in model["model"]["vocab"] if word not in marks]
    model["model"]["vocab"] = {word: number for number, word in enumerate([*marks, *words])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(model)), unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        chat_template=TEMPLATE,
    )  # fmt: skip


LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 10000.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {"attention_bias": True, "rope_parameters": LLAMA3},
        {"tie_word_embeddings": True, "head_dim": 32},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    ],
)
@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_what_else_the_family_has(settings: Any, kind: Any, tmp_path: Path) -> None:
    tokenizer = sentencepiece()
    model = tiny(len(tokenizer) + 5, **settings)  # more embeddings than tokens
    if kind == "bf16":
        model = model.bfloat16().float()  # weights that bf16 holds
    gguf.write(model, tokenizer, tmp_path / "tiny.gguf", kind)
    tokens = torch.randint(0, len(tokenizer), (300,)).tolist()
    right, found = theirs(model, tokens), logits(tmp_path / "tiny.gguf", tokens)
    assert np.abs(right - found).max() < (0.01 if kind == "f32" else 0.03) * right.std()
    read = Model(str(tmp_path / "tiny.gguf"), 64, vocab_only=True)
    text = "The okapi  lives\nin 12 — rainforests 😶"
    assert read.tokens(text, special=False) == tokenizer.encode(text, add_special_tokens=False)


def test_ways_to_split_are_told_apart() -> None:
    tokenizer = bytewise()
    assert vocabulary.split_of(vocabulary.vocabulary(tokenizer, 700), tokenizer) == "gpt-2"
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(False)])
    assert vocabulary.split_of(vocabulary.vocabulary(tokenizer, 700), tokenizer) == "smollm"


def unknown_split(model: Any, tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("e", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def no_template(model: Any, tokenizer: Any) -> None:
    tokenizer.chat_template = None


def too_many_tokens(model: Any, tokenizer: Any) -> None:
    tokenizer.add_tokens(["<extra>"])


def no_bytes(model: Any, tokenizer: Any) -> None:
    tokenizer._tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))


def other_family(model: Any, tokenizer: Any) -> None:
    model.config.model_type = "gpt2"


def other_positions(model: Any, tokenizer: Any) -> None:
    model.config.rope_parameters = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}


def too_large(model: Any, tokenizer: Any) -> None:
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e6


def something_added(model: Any, tokenizer: Any) -> None:
    model.extra = torch.nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (unknown_split, "llama.cpp splits texts otherwise"),
        (no_template, "no chat template"),
        (too_many_tokens, "has token 700, the model embeddings for 700 only"),
        (no_bytes, "of the kind 'WordLevel'"),
        (other_family, "models of the kind 'gpt2'"),
        (other_positions, "positions by 'yarn'"),
        (too_large, "blk.0.ffn_up.weight' hold no finite numbers as f16"),
        (something_added, "no place for the weights 'extra.weight'"),
    ],
)
def test_what_cannot_be_written_is_one_line(damage: Any, says: str, tmp_path: Path) -> None:
    tokenizer = bytewise()
    model = tiny(len(tokenizer))
    damage(model, tokenizer)
    file = tmp_path / "model.gguf"
    file.write_text("was here before")
    with pytest.raises(ExportInvalid, match=says) as raised:
        gguf.write(model, tokenizer, file)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["model.gguf"]
    assert file.read_text() == "was here before"


def test_a_link_keeps_leading_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "model.gguf").symlink_to(tmp_path / "disk/model.gguf")
    steps: list[tuple[str, int, int]] = []
    model = tiny(700)
    gguf.write(model, bytewise(), tmp_path / "model.gguf", progress=lambda *step: steps.append(step))
    assert (tmp_path / "model.gguf").is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["model.gguf"]
    assert steps[0] == ("writing", 0, 21) and steps[-1] == ("writing", 21, 21)
    model.is_quantized = True
    with pytest.raises(ExportInvalid, match="quantised already"):
        gguf.names(model)


def test_what_cannot_be_quantised_is_one_line(tmp_path: Path) -> None:
    shutil.copy(__file__, tmp_path / "no.gguf")
    with pytest.raises(ExportInvalid, match="no type 'Q4_9'"):
        quantise(tmp_path / "no.gguf", tmp_path / "out.gguf", "Q4_9")
    with pytest.raises(ExportInvalid, match="cannot quantise"):
        quantise(tmp_path / "no.gguf", tmp_path / "out.gguf", "Q4_0")
    assert not (tmp_path / "out.gguf").exists()
