"""The bytes that each token of a Hugging Face tokenizer stands for. Knows the tokenizer's files, not its use."""

import json
import re
from typing import Any

from rag_app.engines.marks import MARK

END_NAMES = frozenset(
    {"</s>", "<eos>", "<EOT>", "<|EOT|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>"}
    | {"<|eom_id|>", "<|endofturn|>", "<end_of_turn>", "<turn|>", "<|return|>", "<｜end▁of▁sentence｜>"}
)
"""What ends a reply wherever a tokenizer has it as a control token, as in llama.cpp."""
_BYTE = re.compile("<0x([0-9A-F]{2})>")


def pieces(tokenizer: Any, size: int) -> list[bytes]:
    """The bytes of every id below `size`; b"" for control tokens and for ids without a token."""
    read = _byte_level if _decoder(tokenizer) == "byte-level" else _with_spaces
    added = tokenizer.added_tokens_decoder
    control = set(tokenizer.all_special_ids)
    found = [b""] * size
    for text, token in tokenizer.get_vocab().items():
        if token < size and token not in control and not (token in added and added[token].special):
            found[token] = text.encode() if token in added else read(text)
    return found


def ends(tokenizer: Any, model: Any) -> frozenset[int]:
    """The ids that end a reply: the model's own, and control tokens that do so by their name."""
    own = getattr(model.generation_config, "eos_token_id", None)
    named = [own] if isinstance(own, int) else own or []
    control = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    known = [tokenizer.convert_tokens_to_ids(name) for name in END_NAMES & tokenizer.get_vocab().keys()]
    last = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return frozenset({*named, *last, *(token for token in known if token in control)})


def marks(tokenizer: Any) -> dict[int, str]:
    """Added tokens that look like marks but are no control tokens, which a tokenizer finds in any text."""
    added = tokenizer.added_tokens_decoder.items()
    return {
        token: one.content
        for token, one in added
        if not one.special and token != tokenizer.unk_token_id and MARK.fullmatch(one.content)
    }


def spaced(tokenizer: Any) -> bool:
    """Whether the first word of a text has a space before it that is not part of the text, as in SentencePiece."""
    return _decoder(tokenizer) == "spaced"


def _decoder(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.dumps(json.loads(backend.to_str()).get("decoder")) if backend else ""
    if "ByteLevel" in decoder:
        return "byte-level"
    return "spaced" if "Strip" in decoder or "Metaspace" in decoder or not backend else "plain"


def _byte_level(text: str) -> bytes:
    return b"".join(bytes([_BYTES[c]]) if c in _BYTES else c.encode() for c in text)


def _with_spaces(text: str) -> bytes:
    byte = _BYTE.fullmatch(text)
    return bytes([int(byte[1], 16)]) if byte else text.replace("\u2581", " ").encode()


def _characters() -> dict[str, int]:
    """GPT-2's characters for bytes: those that can be seen stand for themselves, the others for what follows 255."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + n): byte for n, byte in enumerate(unseen)}


_BYTES = _characters()
