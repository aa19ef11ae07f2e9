"""One run of pruning: what goes, what that costs on examples held out, and a folder of Transformers with what is left.

OUT/                config.json, model.safetensors, tokenizer, chat template: loads as any model of Transformers
    prune.json      what was done, and perplexity, score and size before, after, and after distilling
    complete.json   bytes and SHA-256 of every file
"""

import copy
import json
import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from finetune.compress import depth, sparse
from finetune.compress.distill import recover
from finetune.data.splits import split
from finetune.errors import ConfigInvalid, DatasetEmpty
from finetune.evaluation import adapters, evaluate, generate, perplexity
from finetune.evaluation.evaluate import sample
from finetune.example import Example
from index import folders
from index.errors import RagError
from index.paths import expanded
from rag_app.engines.layout import Layout

Method = Literal["magnitude", "wanda", "layers", "block"]
METHODS: tuple[Method, ...] = get_args(Method)
STRUCTURED = frozenset({"layers", "block"})
CALIBRATION = 32_768
"""Tokens that activations and hidden states are measured on; more change the choice little (Sun et al. 2023, 4.3)."""
LONGEST = 2048
"""Tokens of a row that they are measured on."""
HELD_OUT = 128
"""Examples that are measured before and after."""
MAX_TOKENS = 96
"""Of a generated answer."""
REPORT = "prune.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """What goes."""

    method: Method = "wanda"
    """magnitude, wanda: single weights. layers: the least of all. block: the least of those in a row."""
    share: float = 0.3
    """magnitude, wanda: of the weights of the linear layers."""
    group: int | None = None
    """magnitude, wanda: weights that the share is of; 4 with a share of 0.5 is the pattern 2:4. By default the papers':
    a matrix, or an output's weights."""
    layers: int = 0
    """layers, block: how many."""
    distill: int = 0
    """Steps of distilling the unpruned model into the pruned one."""
    seed: int = 42

    def __post_init__(self) -> None:
        if self.method in STRUCTURED and self.layers < 1:
            raise ConfigInvalid(f"method {self.method} removes {self.layers} layers: give --layers 1 or more")
        if self.method not in STRUCTURED and not 0 < self.share < 1:
            raise ConfigInvalid(f"sparsity is {self.share}: give a number above 0 and below 1, or 2:4")
        if self.distill < 0:
            raise ConfigInvalid(f"distill is {self.distill}: give the number of steps")


@dataclass(frozen=True, slots=True)
class Measured:
    """A model at one stage."""

    answers: float
    """Perplexity of the answers held out."""
    texts: float | None
    """Perplexity of the passages held out, where there are any."""
    score: float
    """Mean of the tasks' own metrics on generated answers."""
    parameters: int
    zeros: int
    """Parameters that are zero."""
    bytes: int
    """Of the weights as they are saved, in bf16; zeros take as much room as other numbers."""


def prune(
    name: str | None, examples: Sequence[Example], out: Path, how: Pruning, progress: depth.Progress
) -> dict[str, Any]:
    """Prunes a model, and keeps it as a folder that is whole or absent.

    Args:
        name: of a model, or of an adapter, which is merged first.
        examples: the training part calibrates and distils, the validation part is measured.
        out: the folder; one that is there is replaced.
        how: what goes.
        progress: is told of stage, done and total.

    Returns:
        what `prune.json` holds.

    Raises:
        DatasetEmpty: a part has no examples.
        MethodInvalid: the model cannot be pruned so.
        OSError: the disk is full; nothing is left behind.
    """
    import torch

    training, held_out = _parts(examples, how.seed)
    base, model, layout = _loaded(name)
    sparse.check(model, how.group) if how.method not in STRUCTURED else depth.check(model, how.layers)
    stages = {"before": _measured(model, layout, held_out, progress)}
    whole = copy.deepcopy(model) if how.distill else None
    removed = _pruned(model, _calibration(training, layout, how.seed), how, progress)
    stages["pruned"] = _measured(model, layout, held_out, progress)
    if whole is not None:
        with sparse.kept(model):
            recover(model, whole, layout, training, how.distill, how.seed, progress)
        stages["distilled"] = _measured(model, layout, held_out, progress)
    report = {"base_model": base, **asdict(how), **removed, "training": len(training), "held_out": len(held_out)}
    report["stages"] = {name: asdict(stage) for name, stage in stages.items()}
    with folders.staged(out) as part:
        model.to(torch.bfloat16).save_pretrained(part)
        layout.tokenizer.save_pretrained(part)
        (part / REPORT).write_text(json.dumps(report, indent=1), "utf-8")
    return report


def _loaded(name: str | None) -> tuple[str, Any, Layout]:
    from finetune import methods
    from finetune.training import attention
    from rag_app.engines import checkpoints as models

    adapter = adapters.find(name) if name else None
    source = models.settled(adapters.base_of(adapter) if adapter else models.find(name))
    model, tokenizer = adapters.load(adapter, source) if adapter else models.load(source, "auto", "auto")
    model = methods.merge(model) if adapter else model
    if model.device.type == "cpu":
        model.set_attn_implementation(attention.register())
    return str(adapter.folder) if adapter else source.name, model, Layout(source.name, tokenizer)


def free(out: Path, force: bool, read: str | None = None) -> Path:
    """A folder that a model may be written to.

    Raises:
        RagError: there is something already; with `force`, something that no run left there, or the model `read`.
    """
    there = next(one for one in out.absolute().parents if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise RagError(f"'{out}' cannot be written, as '{there}' cannot: name another folder")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return out
    if not force:
        raise RagError(f"'{out}' is there already: name another folder, or replace it with --force")
    if read and expanded(read).resolve() == out.resolve():
        raise RagError(f"'{out}' is what is read, and would be lost: name another folder")
    if not (out / folders.COMPLETE).is_file():
        raise RagError(f"'{out}' holds what is none of ours, and would be lost: name another folder")
    return out


def _parts(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """Training, and a sample of what is held out; the test part is never touched."""
    if not any(one.part == "validation" for one in examples):
        examples = split(examples, 0.1, 0.0, seed)
    parts = [[one for one in examples if one.part == part] for part in ("train", "validation")]
    for part, name in zip(parts, ("to calibrate on", "to measure"), strict=True):
        if not part:
            raise DatasetEmpty(f"there is no example {name}: give a file with more of them")
    return parts[0], sample(parts[1], HELD_OUT, seed)


def _calibration(examples: Sequence[Example], layout: Layout, seed: int) -> list[list[int]]:
    """Prompts with their answers, a row each; those that are long are left out.

    Raises:
        DatasetEmpty: all are.
    """
    rows: list[list[int]] = []
    for one in random.Random(seed).sample(list(examples), len(examples)):
        row = [*layout.prompt(one.messages()), *layout.answer(one.answer)]
        if len(row) <= LONGEST:
            rows.append(row)
        if sum(map(len, rows)) > CALIBRATION:
            break
    if not rows:
        raise DatasetEmpty(f"every example is longer than {LONGEST:,} tokens: shorten them")
    return rows


def _pruned(model: Any, rows: list[list[int]], how: Pruning, progress: depth.Progress) -> dict[str, Any]:
    """Prunes in place; gives what was removed and why."""
    if how.method == "magnitude":
        sparse.magnitude(model, how.share, how.group)
        return {}
    if how.method == "wanda":
        sparse.wanda(model, rows, how.share, how.group, progress)
        return {}
    if how.method == "layers":
        effect = depth.influences(model, rows, progress)
        gone = depth.least(effect, how.layers)
    else:
        effect = depth.distances(model, rows, how.layers, progress)
        first = depth.least(effect, 1)[0]
        gone = list(range(first, first + how.layers))
    depth.remove(model, gone)
    return {"removed": gone, "effect": effect}


def _measured(model: Any, layout: Layout, examples: Sequence[Example], progress: depth.Progress) -> Measured:
    texts = list(dict.fromkeys(passage for one in examples for passage in one.passages))[:HELD_OUT]
    progress("measuring", 0, 2)
    of_answers = perplexity.of_answers(model, layout, examples)
    progress("measuring", 1, 2)
    of_texts = perplexity.of_texts(model, layout.tokenizer, texts) if texts else None
    progress("measuring", 2, 2)
    written = generate.answers(model, layout, examples, max_tokens=MAX_TOKENS, progress=progress)
    score = evaluate.score(examples, written).score
    numbers = sum(weight.numel() for weight in model.parameters())
    return Measured(of_answers, of_texts, score, numbers, sparse.zeros(model), 2 * numbers)
