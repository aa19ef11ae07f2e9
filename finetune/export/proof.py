"""Proves that an export is the model that it was made of: its tokens, its template, logits as near as a type allows.

Knows no files but the proof's own, and not how an export is made.
"""

import json
import math
import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finetune.errors import ProofFailed
from finetune.example import Example
from rag_app.prompt import PROMPT_VERSION, Message

if TYPE_CHECKING:
    from finetune.export.engines import Engine
    from rag_app.engines.layout import Layout

NAME = "proof.json"
"""Beside a file the end of its name, in a folder the name itself."""
PACKAGES = ("rag-app", "torch", "transformers", "tokenizers", "peft", "gguf", "llama-cpp-python", "gptqmodel")
SPREAD = 3.4
"""Standard deviation of the bundled model's logits at a position, which the largest differences were measured at."""
WRITTEN = 24
"""Tokens of the reply that is written."""
REMEDIES = {
    "gptq-4": "Give --bits 8, or texts like those it will read with --data; or update gptqmodel and transformers",
    "gptq-8": "Update gptqmodel and transformers, or export it as GGUF",
}
"""For what has no types to choose among."""
MOST = 256
"""Tokens whose logits are compared at most, where a small vocabulary makes many of the text."""
ASKED = Example(
    "proof",
    "question_answering",
    "How long is the tongue of an okapi, where does the animal live, and how many are left?",
    "An okapi's tongue is 45 centimetres long, so that it can wash its own eyes and ears with it [1]. It lives in the "
    "Ituri rainforest, in the north-east of the Congo, where about 20,000 were counted in 2013 [2]. The documents do "
    "not say how many are left today.",
    (
        "The okapi (Okapia johnstoni) is an even-toed mammal. Its tongue is 45 centimetres long, so that it can wash "
        "its own eyes and ears with it.",
        "Okapis live in the Ituri rainforest in the north-east of the Congo. About 20,000 were counted in 2013; no one "
        "knows how many are left.",
    ),
)
"""Its answer is where logits are compared: what stands before it, such as the template's own words, no model was taught
to foresee, and there rounding moves logits the most."""
TRAPS = (
    "0 1 22 333 4444 55555 3.14 1,234,567.89 2024-01-31 12:59 50% $7 ½ ² Ⅷ ٣٤ 三十",
    "naïve café Straße ÅÄÖ żółć Ελληνικά Русский עברית العربية हिन्दी ไทย 日本語 中文 한국어 😶\u200d🌫️ 👩🏽\u200d🚀",
    "e\u0301 \u00a0\u3000\u200b\ufeff|  two before, two behind  \n\n\n\tone\t\ttwo   three    four\r\nfive\n \n  \n",
    "don't I'LL we'Ve can't; snake_case camelCase HTTPServer v1.2.3 a+b==c != [x](y) {'k': [1, 2]} </p> # ## \\n <<>>",
)
"""What ways to tokenise differ in."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """How far an export may be from its source; None where something else tells more."""

    difference: float | None = None
    """Of the logits of a token, at most; in a model whose logits have the spread of the bundled one's."""
    divergence: float | None = None
    """Mean over positions of KL(source || export), nats."""
    agreement: float | None = None
    """Share of positions with the same likeliest token, at least."""


LIMITS: Mapping[str, Limit] = {
    "f32": Limit(difference=0.05),  # measured: 0.0001; where there is GELU, which llama.cpp looks up in a table, 0.004
    "f16": Limit(difference=0.25),  # 0.036 to 0.067, of what llama.cpp rounds while it computes; so is bf16's
    "bf16": Limit(difference=2.0),  # 0.32
    "merged": Limit(difference=2.0),  # 0.28
    "8": Limit(divergence=0.03, agreement=0.85),  # Q8_0: 0.004, 0.97
    "6": Limit(divergence=0.05, agreement=0.85),  # Q6_K: 0.006, 0.97
    "5": Limit(divergence=0.4, agreement=0.6),  # Q5_1: 0.09, 0.91
    "4": Limit(divergence=1.2, agreement=0.35),  # Q4_0: 0.27, 0.83; models of random numbers: 0.49, 0.41
    "3": Limit(divergence=2.0, agreement=0.25),
    "2": Limit(divergence=4.0, agreement=0.1),
    "1": Limit(divergence=6.0),
}
"""By type, or by the bits of a weight that its name tells. Measured on the bundled model, with and without adapters;
its rows are too short for types of 3 bits and less."""


@dataclass(frozen=True)
class Expected:
    """What the source says, kept while its weights are gone."""

    template: str
    talk: list[Message]
    """A conversation that holds every trap, and the model's own marks as text."""
    talked: list[int]
    """Its tokens."""
    stop: int
    """The token that ends an answer."""
    tokens: list[int]
    """A prompt and its answer."""
    logits: Any
    """(positions, vocabulary) float32: what follows each of the last tokens."""
    prompt: list[int]
    """Without the answer."""
    marks: bool
    """Whether the source writes control tokens into its reply itself."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was compared, and how it came out."""

    what: str
    """gguf, gguf-lora, merged or gptq."""
    type: str
    """f16, Q4_K_M …"""
    engine: str
    source: Mapping[str, Any]
    """Name and fingerprint of the base; the adapter and how it was merged, where there is one."""
    prompt_version: int
    tokens: int
    """Tokens that came out the same."""
    positions: int
    """Places where logits were compared."""
    measured: Mapping[str, float]
    """As in Limit."""
    limits: Mapping[str, float]
    """Those for this model."""
    stop: int
    """The token that ends an answer."""
    reply: list[int]
    versions: Mapping[str, str | None]
    file: Mapping[str, Any]
    """Bytes and SHA-256 of the file; nothing of a folder, which has them in complete.json."""
    made: str

    def write(self, file: Path) -> None:
        """Writes it to the disk itself."""
        with file.open("w", encoding="utf-8") as stream:
            json.dump(asdict(self), stream, indent=1)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())


def expected(engine: "Engine", layout: "Layout") -> Expected:
    """What an export has to say.

    Args:
        engine: the source, computing in 32 bits.
        layout: of its tokenizer.
    """
    prompt, answer = layout.prompt(ASKED.messages()), layout.answer(ASKED.answer)
    tokens, prompt = [*prompt, *answer][-MOST:], prompt[-MOST:]
    marks = " ".join(map(str, layout.tokenizer.all_special_tokens))
    roles: tuple[Literal["user", "assistant"], ...] = ("user", "assistant")
    talk = [Message(roles[n % 2], text) for n, text in enumerate((*TRAPS, f"{marks}\n{marks}"))]
    written = engine.reply(prompt, WRITTEN)
    return Expected(
        layout.template, talk, layout.prompt(talk), layout.stop(), tokens,
        engine.logits(tokens, min(len(answer) + 1, len(tokens))), prompt, _marks(engine, written),
    )  # fmt: skip


def prove(made: "Engine", right: Expected, kind: str, facts: Mapping[str, Any]) -> Proof:
    """Compares an export with its source.

    Args:
        made: the export, in the engine that will serve it.
        right: of the source.
        kind: its type.
        facts: `what`, `source` and `file` of the proof.

    Raises:
        ProofFailed: naming what is not the same.
    """
    limits = limits_of(kind, right.logits)
    faults = _words(made, right)
    if not faults:
        measured = compared(made.logits(right.tokens, len(right.logits)), right.logits)
        faults = _numbers(measured, limits)
    if not faults:
        reply = made.reply(right.prompt, WRITTEN)
        faults = ["it writes control tokens into its reply"] if _marks(made, reply) and not right.marks else []
    if faults:
        raise ProofFailed(
            f"what was written as {kind} is not the model that it was made of, and was thrown away: {faults[0]}. "
            + REMEDIES.get(kind, "Update llama-cpp-python, gguf and transformers, or give another type")
        )
    return Proof(
        **facts, type=kind, engine=made.name, prompt_version=PROMPT_VERSION, tokens=len(right.talked),
        positions=len(right.logits), measured=measured, limits=limits, stop=right.stop, reply=reply,
        versions=_versions(), made=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )  # fmt: skip


def compared(found: Any, right: Any) -> dict[str, float]:
    """Two models' logits, (positions, vocabulary): largest difference, mean KL(right || found), and agreement."""
    import numpy as np

    if found.shape != right.shape:
        return {"difference": math.inf, "divergence": math.inf, "agreement": 0.0}
    largest, divergence, agreed = 0.0, 0.0, 0
    with np.errstate(invalid="ignore"):  # what is NaN stays so
        for pair in zip(found, right, strict=True):  # a position at a time: vocabularies are large
            mine, theirs = (one.astype(np.float64) for one in pair)
            log_p, log_q = (one - np.logaddexp.reduce(one) for one in (theirs, mine))
            largest = float(np.maximum(largest, np.abs(mine - theirs).max()))
            divergence += float((np.exp(log_p) * (log_p - log_q)).sum())
            agreed += int(mine.argmax() == theirs.argmax())
    return {"difference": largest, "divergence": divergence / len(right), "agreement": agreed / len(right)}


def limits_of(kind: str, logits: Any) -> dict[str, float]:
    """The limits of a type for a model with such logits, (positions, vocabulary)."""
    limit = LIMITS[kind if kind in LIMITS else next(one for one in kind if one.isdigit())]
    found = {name: value for name, value in asdict(limit).items() if value is not None}
    if "difference" in found:
        found["difference"] *= max(1.0, float(logits.std(axis=1).mean()) / SPREAD)
    return found


def _words(made: "Engine", right: Expected) -> list[str]:
    """What is wrong with tokens and template."""
    if made.template != right.template:
        return ["it has another chat template"]
    talked = made.prompt(right.talk)
    if talked != right.talked:
        at = next((n for n, (a, b) in enumerate(zip(talked, right.talked, strict=False)) if a != b), len(talked))
        return [f"its tokens differ from the tokenizer's, at token {at} of {len(right.talked)} first"]
    return [] if right.stop in made.ends else [f"the token {right.stop}, which ends an answer, does not end it"]


def _numbers(measured: Mapping[str, float], limits: Mapping[str, float]) -> list[str]:
    """What is wrong with the logits; NaN always is."""
    faults = []
    for name, limit in limits.items():
        value = measured[name]
        if not (value >= limit if name == "agreement" else value <= limit):
            faults.append(f"the {name} of its logits is {value:.3g}, where {limit:.3g} is allowed")
    return faults


def _marks(engine: "Engine", reply: list[int]) -> bool:
    """Whether a reply goes on as somebody else."""
    return bool((engine.control - engine.ends) & set(reply))


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        found[name] = None
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
