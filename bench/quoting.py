"""What masking quotes costs per token, with the bundled model's 49,152 tokens and 4 to 40 passages of real text.

Run: .venv/bin/python -m bench.quoting [--docs DIR]

The text is written token by token: plain text, then a quote that is copied from a passage, and again. Figures are
milliseconds per token (median, 95th percentile, worst), and of what is done once: the vocabulary per model, the layout
per prompt, the first look at the tokens outside quotes, and at those that may begin one.
"""

import argparse
import ctypes
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import machine
from rag_app.engines.quoting import QuoteMask, Vocabulary
from rag_app.models import locate

RESULTS = Path(__file__).parent / "results"
WORDS = 180
"""Words of a passage: about 256 tokens."""
ROUNDS = 40


def tokenizer() -> tuple[list[bytes], list[int], Callable[[bytes], list[int]]]:
    """Bytes and ends of the bundled model's tokens, and the function that makes tokens of text."""
    import llama_cpp

    llama = llama_cpp.Llama(str(locate()), vocab_only=True, verbose=False)
    vocab = llama_cpp.llama_model_get_vocab(llama.model)
    buffer, pieces = ctypes.create_string_buffer(512), []
    for token in range(llama.n_vocab()):
        length = llama_cpp.llama_token_to_piece(vocab, token, buffer, 512, 0, False)
        pieces.append(buffer.raw[:length])
    ends = [token for token in range(len(pieces)) if llama_cpp.llama_vocab_is_eog(vocab, token)]
    return pieces, ends, lambda text: llama.tokenize(text, add_bos=False, special=False)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds, and what the work gives."""
    began = time.perf_counter()
    result = work()
    return 1e3 * (time.perf_counter() - began), result


def write(mask: QuoteMask, logits: Any, tokens: list[int]) -> list[float]:
    """Milliseconds of each token's mask and acceptance; all of them must be allowed."""
    taken = []
    for token in tokens:
        fresh = logits.copy()
        applied, _ = timed(lambda fresh=fresh: mask.apply(fresh))
        assert np.isfinite(fresh[token])
        accepted, _ = timed(lambda token=token: mask.accept(token))
        taken.append(applied + accepted)
    return taken


def summary(taken: list[float]) -> dict[str, float]:
    """Median, 95th percentile and worst."""
    return {
        "p50_ms": round(float(np.median(taken)), 4),
        "p95_ms": round(float(np.percentile(taken, 95)), 4),
        "max_ms": round(max(taken), 4),
    }


def quote_from(passage: str, start: int) -> str:
    """Twelve words that may be quoted, not before the given one where there are any."""
    words = passage.split()
    runs = [" ".join(words[n : n + 12]) for n in range(len(words) - 12)]
    good = [run for run in runs if run[0].isalnum() and '"' not in run]
    return good[start % len(good)]


def measure(vocabulary: Vocabulary, tokenise: Callable[[bytes], list[int]], passages: list[str]) -> dict[str, Any]:
    """The figures for one prompt."""
    logits = np.zeros(len(vocabulary.pieces), np.float32)
    layout, mask = timed(lambda: QuoteMask(vocabulary, passages))
    outside, _ = timed(lambda: mask.apply(logits.copy()))
    plain, quoted, opened = [], [], []
    for number in range(ROUNDS):
        first, *rest = tokenise(quote_from(passages[number % len(passages)], number * 3).encode())
        plain += write(mask, logits, tokenise(f" In 2024, the manual says of part {number} that".encode()))
        plain += write(mask, logits, tokenise(b' "'))
        opened += write(mask, logits, [first])
        quoted += write(mask, logits, rest)
        mask.accept(tokenise(b'"')[0])
    return {
        "characters": sum(map(len, passages)),
        "layout_ms": round(layout, 3),
        "first_outside_ms": round(outside, 3),
        "first_of_the_first_quote_ms": round(opened[0], 3),
        "first_of_later_quotes": summary(opened[1:]),
        "outside": summary(plain),
        "inside": summary(quoted),
    }


def main() -> None:
    """Prints the figures and writes them to bench/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=Path())
    options = parser.parse_args()
    words = " ".join(path.read_text("utf-8") for path in sorted(options.docs.glob("*.md"))).split()
    pieces, ends, tokenise = tokenizer()
    built, vocabulary = timed(lambda: Vocabulary(pieces, ends))
    figures: dict[str, Any] = {"vocabulary_ms": round(built, 1)}
    for count in (4, 40):
        passages = [" ".join(words[n * WORDS : (n + 1) * WORDS]) for n in range(min(count, len(words) // WORDS))]
        figures[f"{len(passages)} passages"] = measure(vocabulary, tokenise, passages)
    text = json.dumps({"machine": machine(), **figures}, indent=1)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "quoting.json").write_text(text + "\n", "utf-8")
    print(text)


if __name__ == "__main__":
    main()
