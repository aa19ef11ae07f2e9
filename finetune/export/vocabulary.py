"""A tokenizer of Transformers as the vocabulary of a GGUF file. Knows nothing of weights."""

import json
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import ExportInvalid

if TYPE_CHECKING:
    import gguf

SPLITS = (
    "smollm", "llama-bpe", "qwen2", "tekken", "gpt-2", "gpt-4o", "dbrx", "deepseek-llm", "deepseek-coder",
    "deepseek-v3", "falcon", "chatglm-bpe", "superbpe", "trillion", "mpt", "olmo", "stablelm2",
)  # fmt: skip
"""Names that llama.cpp has for ways to split a text before its bytes are merged; the first that fits is taken."""
TRAPS = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶‍🌫️ (joined) ✅ 🦙🦙 3 33 333 3333 33333 "
    "3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ ------======= нещо на Български ''''''```````"
    "\"\"\"\"....!!!!!!?????? I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, We'Ve a'lL\n\n1. "
    "one\n  22 two\n\t3½ three²  4\r\n\r\n5 camelCase HTTPServer snake_case\n\n}\n  // ±٣٤ Ⅷ naïve ไทย\u00a0x\u3000y "
)
"""What ways to split differ in; that of the official converter, and more."""


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of its tokens."""

    kind: str
    """gpt2 (bytes that are merged) or llama (SentencePiece)."""
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    """llama: higher is merged earlier."""
    space: bool
    """llama: a space stands before every text."""
    special: "gguf.SpecialVocab"
    """Merges, special tokens and the chat template."""

    def add_to(self, writer: "gguf.GGUFWriter", split: str) -> None:
        """Writes it, with the name of the way to split."""
        writer.add_tokenizer_model(self.kind)
        writer.add_tokenizer_pre(split)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        writer.add_add_space_prefix(self.space)
        self.special.add_to_gguf(writer, quiet=True)


def vocabulary(tokenizer: Any, size: int) -> Vocabulary:
    """The tokenizer's vocabulary, filled up to as many tokens as the model has embeddings for.

    Raises:
        ExportInvalid: llama.cpp has no such kind of tokenizer, it has more tokens than the model, or no chat template.
    """
    if not tokenizer.chat_template:
        raise ExportInvalid(
            "the tokenizer has no chat template, so nobody would know how to ask the model: give it one"
        )
    inner = getattr(tokenizer, "backend_tokenizer", None)
    model = json.loads(inner.to_str())["model"] if inner else {}
    if model.get("type") != "BPE":
        raise ExportInvalid(
            f"the tokenizer is of the kind '{model.get('type', type(tokenizer).__name__)}', and only BPE with a "
            "tokenizer.json can be written as GGUF: use a model that has one"
        )
    names = {token: name for name, token in tokenizer.get_vocab().items()}
    if max(names) >= size:
        raise ExportInvalid(
            f"the tokenizer has token {max(names)}, the model embeddings for {size} only: resize its embeddings, or "
            "load it with the tokenizer that it came with"
        )
    pieces = bool(model.get("byte_fallback"))
    tokens = [names.get(token, f"[PAD{token}]") for token in range(size)]
    return Vocabulary(
        "llama" if pieces else "gpt2",
        tokens,
        [_type(token, names.get(token), tokenizer, pieces) for token in range(size)],
        _scores(tokens, model["merges"]) if pieces else None,
        pieces and tokenizer.tokenize("a")[0].startswith("▁"),
        _special(tokenizer, size, merges=not pieces),
    )


def _type(token: int, name: str | None, tokenizer: Any, pieces: bool) -> int:
    from gguf import TokenType

    added = tokenizer.added_tokens_decoder.get(token)
    if name is None:
        return TokenType.UNUSED
    if pieces and token == tokenizer.unk_token_id:
        return TokenType.UNKNOWN
    if added is not None:
        return TokenType.CONTROL if added.special else TokenType.USER_DEFINED
    return TokenType.BYTE if pieces and len(name) == 6 and name.startswith("<0x") else TokenType.NORMAL


def _scores(tokens: list[str], merges: list[Any]) -> list[float]:
    """SentencePiece merges the pair whose result has the highest score: what is merged first."""
    parts = (merge if isinstance(merge, list) else merge.split(" ") for merge in merges)
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(parts):
        ranks.setdefault("".join(pair), rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def _special(tokenizer: Any, size: int, merges: bool) -> "gguf.SpecialVocab":
    from gguf import SpecialVocab

    from rag_app.engines.layout import Layout

    logging.getLogger("gguf").setLevel(logging.ERROR)  # it says on stderr which pairs of texts it cannot join
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        special = SpecialVocab(folder, load_merges=merges, n_vocab=size)
    around = tokenizer("a").input_ids
    special.add_special_token = {
        "bos": around[0] == tokenizer.bos_token_id,
        "eos": around[-1] == tokenizer.eos_token_id,
    }
    if (stop := Layout("model", tokenizer).stop()) != tokenizer.eos_token_id:
        special.special_token_ids["eot"] = stop  # llama.cpp knows the usual ones by their names alone
    return special


def split_of(vocab: Vocabulary, tokenizer: Any) -> str:
    """llama.cpp's name for the way in which the tokenizer splits a text before it merges.

    Tokenizers do not say it, so llama.cpp is given the vocabulary under each name, until it makes the same tokens.

    Raises:
        ExportInvalid: it makes them under none; the file would be served with other tokens than it was trained with.
    """
    right = tokenizer.encode(TRAPS, add_special_tokens=False, split_special_tokens=True)
    for name in SPLITS if vocab.kind == "gpt2" else ("default",):
        if _tokens(vocab, name) == right:
            return name
    raise ExportInvalid(
        "llama.cpp splits texts otherwise than this tokenizer in every way that is known here, so that the model "
        "would read other tokens than it was trained on: use it with Transformers, or update llama-cpp-python"
    )


def _tokens(vocab: Vocabulary, split: str) -> list[int]:
    """What llama.cpp makes of the traps."""
    from gguf import GGUFWriter

    from rag_app.engines.native import Model, Refused

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "vocabulary.gguf")
        writer = GGUFWriter(file, "llama")
        vocab.add_to(writer, split)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        try:
            model = Model(str(file), 64, vocab_only=True)
        except Refused:
            return []  # a name that this llama.cpp does not know yet
        try:
            return model.tokens(TRAPS, special=False)
        finally:
            model.api.llama_model_free(model.handle)
