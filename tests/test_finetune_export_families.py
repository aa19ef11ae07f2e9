"""Models of each family as GGUF files: llama.cpp's tokens and logits against those of Transformers."""

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, quants
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GemmaTokenizer, Qwen2Tokenizer

from finetune.errors import ExportInvalid
from finetune.export import families, gguf, imatrix, vocabulary
from finetune.export.quantise import expected, quantise
from rag_app.engines.layout import Layout
from rag_app.engines.native import Model, hush
from tests.test_finetune_gguf import TEXTS, bytewise, sentencepiece

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<turn>{{ m.role }}\n{{ m.content }}<stop>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
CORPUS = [Path(__file__).read_text("utf-8"), vocabulary.TRAPS]


def trained(inner: Tokenizer, first: list[str], **settings: Any) -> dict[str, Any]:
    """Vocabulary and merges, as the tokenizers of Transformers take them."""
    inner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=600, show_progress=False, **settings))
    model = json.loads(inner.to_str())["model"]
    words = [*first, *(word for word in model["vocab"] if word not in first)]
    return {"vocab": {word: n for n, word in enumerate(words)}, "merges": list(map(tuple, model["merges"]))}


def gemma() -> Any:
    """Runs of line breaks are tokens that stand apart, as in Gemma's own."""
    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    inner.normalizer = normalizers.Replace(" ", "▁")
    marks = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    own = trained(inner, [*marks, "<turn>", "<stop>", "\n", "\n\n", "▁▁"])
    tokenizer: Any = GemmaTokenizer(**own, chat_template=TEMPLATE, add_bos_token=True)
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in ("\n", "\n\n", "▁▁")])
    tokenizer.add_tokens([AddedToken(mark, special=True) for mark in ("<turn>", "<stop>")])
    return tokenizer


def qwen2() -> Any:
    like: Any = Qwen2Tokenizer()
    inner = Tokenizer(models.BPE())
    inner.normalizer, inner.pre_tokenizer = like.backend_tokenizer.normalizer, like.backend_tokenizer.pre_tokenizer
    own = trained(inner, [], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer: Any = Qwen2Tokenizer(**own, chat_template=TEMPLATE)
    tokenizer.add_tokens([AddedToken(mark, special=True) for mark in ("<turn>", "<stop>")])
    return tokenizer


TOKENIZERS = {"llama": bytewise, "mistral": sentencepiece, "qwen2": qwen2, "gemma": gemma}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    return {name: make() for name, make in TOKENIZERS.items()}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_are_those_of_transformers(name: str, tokenizers: Any, tmp_path: Path, capfd: Any) -> None:
    tokenizer = tokenizers[name]
    gguf.write(tiny("llama", tokenizer), tokenizer, tmp_path / "tiny.gguf")
    model = Model(str(tmp_path / "tiny.gguf"), 64, vocab_only=True)
    for text in (*TEXTS, "two  spaces, three   , a line\n\n\nbreak 😶"):
        assert model.tokens(text, special=False) == tokenizer.encode(
            text, add_special_tokens=False, split_special_tokens=True
        )
    assert model.template == tokenizer.chat_template
    assert model.begin == ([tokenizer.bos_token_id] if name == "gemma" else [])
    assert {Layout(name, tokenizer).stop(), tokenizer.eos_token_id} <= model.ends
    assert capfd.readouterr() == ("", "")


def tiny(kind: str, tokenizer: Any, **settings: Any) -> Any:
    """A model whose logits are of the order of 1 to 10, and depend on all that it has."""
    torch.manual_seed(3)
    shape = {
        "vocab_size": len(tokenizer) + 3, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "head_dim": 16 if kind == "qwen2" else 32,
    }  # fmt: skip
    if kind in ("gemma2", "gemma3_text"):
        shape |= {"query_pre_attn_scalar": 32, "sliding_window": 32}
    model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        CONFIG_MAPPING[kind](**{**shape, **settings}), attn_implementation="eager"
    )
    for name, value in model.named_parameters():
        value.data = torch.randn_like(value) * (0.15 if "proj.weight" in name else 0.3)
        if "norm" in name and not kind.startswith("gemma"):
            value.data += 1
    return model.eval()


def logits(file: Path, tokens: list[int]) -> Any:
    """llama.cpp's, without the 16 bits that it keeps keys and values in by default."""
    import llama_cpp

    api: Any = llama_cpp
    hush()
    model = api.llama_model_load_from_file(str(file).encode(), api.llama_model_default_params())
    settings = api.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 256
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = settings.flash_attn_type = 0
    context = api.llama_init_from_model(model, settings)
    batch = api.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for place, token in enumerate(tokens):
        batch.token[place], batch.pos[place], batch.n_seq_id[place], batch.logits[place] = token, place, 1, 1
        batch.seq_id[place][0] = 0
    assert api.llama_decode(context, batch) == 0
    size = len(tokens) * api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    found = np.ctypeslib.as_array(ctypes.cast(api.llama_get_logits(context), ctypes.POINTER(ctypes.c_float)), (size,))
    kept = found.reshape(len(tokens), -1).copy()
    api.llama_batch_free(batch)
    api.llama_free(context)
    api.llama_model_free(model)
    return kept


def largest_difference(model: Any, file: Path, length: int = 100) -> float:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, model.config.vocab_size - 3, (length,), generator=generator)
    with torch.inference_mode():
        right = model(tokens[None]).logits[0].numpy()
    assert 1.5 < right.std() < 3.5
    return float(np.abs(logits(file, tokens.tolist()) - right).max())


LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 1e4,
    "original_max_position_embeddings": 64,
}  # fmt: skip
NEAR_AND_FAR = {"full_attention": LINEAR, "sliding_attention": {"rope_type": "default", "rope_theta": 3e3}}


@pytest.mark.parametrize(
    ("kind", "tokenizer", "settings"),
    [
        ("llama", "llama", {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3}),
        ("mistral", "mistral", {"sliding_window": None, "rope_parameters": LINEAR}),
        ("qwen2", "qwen2", {"rope_parameters": LINEAR}),
        ("qwen2", "qwen2", {"tie_word_embeddings": True}),
        ("qwen3", "qwen2", {}),
        ("gemma", "gemma", {}),
        ("gemma2", "gemma", {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 7.0}),
        ("gemma2", "gemma", {"num_hidden_layers": 46, "query_pre_attn_scalar": 16}),  # as only the largest has it
        ("gemma3_text", "gemma", {"num_hidden_layers": 7, "rope_parameters": NEAR_AND_FAR}),
        ("gemma3_text", "gemma", {"tie_word_embeddings": False, "final_logit_softcapping": 7.0}),
    ],
)
def test_logits_are_those_of_transformers(
    kind: str, tokenizer: str, settings: Any, tokenizers: Any, tmp_path: Path
) -> None:
    model = tiny(kind, tokenizers[tokenizer], **settings)
    gguf.write(model, tokenizers[tokenizer], tmp_path / "tiny.gguf", "f32")
    # llama.cpp looks Gemma's activation up in a table of 16 bits
    exact = 0.01 * model.config.num_hidden_layers / 2 if kind.startswith("gemma") else 2e-4
    assert largest_difference(model, tmp_path / "tiny.gguf") < exact
    for value in model.parameters():  # to those that f16 holds
        value.data = value.data.half().float()
    gguf.write(model, tokenizers[tokenizer], tmp_path / "tiny.gguf", "f16")
    assert largest_difference(model, tmp_path / "tiny.gguf") < max(0.05, exact)


def test_a_window_that_llama_cpp_does_not_know_is_the_most_that_it_is_told(tokenizers: Any, tmp_path: Path) -> None:
    model = tiny("mistral", tokenizers["mistral"], sliding_window=64)
    gguf.write(model, tokenizers["mistral"], tmp_path / "tiny.gguf", "f32")
    assert GGUFReader(tmp_path / "tiny.gguf").get_field("llama.context_length").contents() == 64
    assert largest_difference(model, tmp_path / "tiny.gguf", 64) < 2e-4


def test_names_are_told_by_those_of_transformers(tokenizers: Any) -> None:
    model = tiny("qwen3", tokenizers["qwen2"])
    found = gguf.names(model)
    assert len(found) == 3 + 2 * 11
    assert found["model.embed_tokens.weight"] == "token_embd.weight"
    assert found["model.layers.1.self_attn.q_norm.weight"] == "blk.1.attn_q_norm.weight"
    assert gguf.heads(model.config) == {}
    assert gguf.heads(tiny("mistral", tokenizers["qwen2"]).config) == {"q_proj": 4, "k_proj": 2}
    assert families.of(model.config).arch == "qwen3"


@pytest.mark.parametrize(
    ("kind", "settings", "says"),
    [
        ("llama", {"hidden_act": "gelu"}, "the activation gelu"),
        ("qwen2", {"rope_parameters": LLAMA3}, "positions by 'llama3', and only default, linear"),
        ("qwen2", {"head_dim": 32}, "heads that are not as wide together as the model"),
        ("qwen3", {"attention_bias": True}, "no place for the weights 'model.layers.0.self_attn.o_proj.bias'"),
        ("gemma", {"attention_bias": True}, "no place for the weights 'model.layers.0.self_attn.q_proj.bias'"),
        ("gemma2", {"attn_logit_softcapping": None}, "logits without a cap"),
        ("gemma2", {"tie_word_embeddings": False}, "no place for the weights 'lm_head.weight'"),
        ("gemma2", {"query_pre_attn_scalar": 16}, "attention scaled by 16"),
        ("gemma2", {"layer_types": ["full_attention"] * 2}, "windows in other layers"),
        ("gemma3_text", {"attn_logit_softcapping": 5.0}, "attention with a cap"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "attention to later tokens"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(kind: str, settings: Any, says: str, tokenizers: Any) -> None:
    with pytest.raises(ExportInvalid, match=says) as raised:
        gguf.names(tiny(kind, tokenizers["llama"], **settings))
    assert "\n" not in str(raised.value)


def test_importance_is_the_mean_of_squared_inputs(tokenizers: Any, tmp_path: Path) -> None:
    tokenizer = tokenizers["llama"]
    model = tiny("llama", tokenizer, tie_word_embeddings=True).train()
    rows = [tokenizer.encode("The okapi lives in the rainforest."), tokenizer.encode("Its tongue is long.")]
    steps: list[tuple[str, int, int]] = []
    found = imatrix.measure(model, rows, lambda *step: steps.append(step))
    assert steps == [("weighing", 1, 2), ("weighing", 2, 2)]
    assert model.training
    assert found.keys() == {place for name, place in gguf.names(model).items() if "norm" not in name}
    tokens = torch.tensor([token for row in rows for token in row])
    first = model.model.layers[0].input_layernorm(model.model.embed_tokens(tokens)).detach()
    assert np.allclose(found["blk.0.attn_k.weight"], first.square().mean(0), rtol=1e-5)
    with torch.inference_mode():
        last = torch.cat([model.model(torch.tensor([row])).last_hidden_state[0] for row in rows])
    assert np.allclose(found["token_embd.weight"], last.square().mean(0), rtol=1e-5)
    imatrix.save(found, tmp_path / "imatrix.gguf")
    again = imatrix.load(tmp_path / "imatrix.gguf")
    assert again.keys() == found.keys()
    assert all(np.array_equal(again[name], values) for name, values in found.items())
    with pytest.raises(ExportInvalid, match="no text to weigh"):
        imatrix.measure(model, [])


@pytest.fixture(scope="module")
def wide(tokenizers: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model that K-quants fit, but for its second matrix of the MLP, as a file."""
    model = tiny("llama", tokenizers["llama"], hidden_size=256, head_dim=64)
    file = tmp_path_factory.mktemp("wide") / "wide.gguf"
    gguf.write(model, tokenizers["llama"], file)
    return model, file


def unpacked(file: Path, name: str) -> Any:
    tensor = next(one for one in GGUFReader(file).tensors if one.name == name)
    return quants.dequantize(tensor.data, tensor.tensor_type)


def test_columns_that_matter_are_rounded_less(wide: tuple[Any, Path], tmp_path: Path) -> None:
    model, file = wide
    matrix = {
        place: np.where(np.arange(one.shape[-1]) % 8 == 0, 100, 0.01).astype(np.float32)
        for (name, one), place in zip(model.named_parameters(), gguf.names(model).values(), strict=True)
        if one.dim() > 1
    }
    steps: list[tuple[str, int, int]] = []
    assert quantise(file, tmp_path / "plain.gguf", "Q4_K_M", progress=lambda *step: steps.append(step)) == 2
    assert steps[-1] == ("quantising", 21, 21)
    assert quantise(file, tmp_path / "weighed.gguf", "Q4_K_M", matrix) == 2  # the rows of ffn_down have 96 numbers
    right = model.model.layers[0].mlp.up_proj.weight.detach().numpy()
    errors = {
        name: np.square(unpacked(tmp_path / f"{name}.gguf", "blk.0.ffn_up.weight") - right).mean(0)
        for name in ("plain", "weighed")
    }
    assert errors["weighed"][::8].mean() < 0.6 * errors["plain"][::8].mean()
    for kind, name in (("f16", file.name), ("Q4_K_M", "plain.gguf")):
        size = (file if kind == "f16" else tmp_path / name).stat().st_size
        assert 0.9 * size < expected(model, kind) < 1.15 * size


def test_an_interrupted_quantisation_leaves_nothing(wide: tuple[Any, Path], tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    (tmp_path / "model.gguf").write_text("was here before")
    with pytest.raises(KeyboardInterrupt):
        quantise(wide[1], tmp_path / "model.gguf", "Q8_0", progress=interrupt)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["model.gguf"]
    assert (tmp_path / "model.gguf").read_text() == "was here before"


def test_a_type_that_needs_weights_for_the_weights_says_so(wide: tuple[Any, Path], tmp_path: Path) -> None:
    with pytest.raises(ExportInvalid, match="requires an imatrix!\\): give it an importance matrix"):
        quantise(wide[1], tmp_path / "model.gguf", "IQ2_XXS")
    assert not (tmp_path / "model.gguf").exists()
