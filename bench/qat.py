"""What an export to few bits costs: of the model as it is, trained plainly, and trained with rounded weights.

Run on an idle machine: .venv/bin/python -m bench.qat --squad ../shared/data/squad
Paragraphs of SQuAD's training articles; the last three articles are held out. Both trainings have the same examples,
steps and rates. Perplexity is that of held-out paragraphs, of the GGUF files as llama.cpp computes them. The loss is
against the file of 16 bits that was trained plainly; half of the plain one's is the bar.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import machine
from finetune.config import checked
from finetune.example import Example, write_examples

RESULTS = Path(__file__).parent / "results"
WINDOW = 512
HELD_OUT = 3


def paragraphs(squad: Path) -> list[Example]:
    """Each paragraph as what is to be written about its article."""
    lines = (squad / "train_corpus.jsonl").read_text("utf-8").splitlines()
    made = [json.loads(line) for line in lines]
    titles = list(dict.fromkeys(one["title"] for one in made))
    return [
        Example(one["_id"], "text_generation", f"Write a paragraph about {one['title']}.", one["text"],
                document=one["title"], part="test" if one["title"] in titles[-HELD_OUT:] else "train")
        for one in made
    ]  # fmt: skip


def trained(data: Path, folder: Path, kind: str | None, options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The plain model with what a run of training gave it, fp32, and the run's own report."""
    from finetune import methods
    from finetune.training.train import train
    from rag_app.engines import checkpoints

    values = {
        "adapter": options.adapter, "datasets": [{"path": str(data)}], "val_set_size": 0, "qat": kind,
        "max_steps": options.steps, "gradient_accumulation_steps": 8, "on_bad_record": "skip", "sequence_len": WINDOW,
        "lora_r": options.rank,
        "lora_alpha": 2 * options.rank, "output_dir": str(folder), "use_tensorboard": False,
        **({"learning_rate": options.rate} if options.rate else {}),
    }  # fmt: skip
    began = time.perf_counter()
    report = train(checked(values, "bench"))
    report["seconds"] = time.perf_counter() - began
    model, _ = checkpoints.load(checkpoints.find(None), "16-bit", "cpu")
    return methods.merge(methods.load(model.float(), Path(report["adapter"])).float()), report


def perplexity(file: Path, rows: Sequence[tuple[list[int], list[int]]]) -> float:
    """Of the answers behind their prompts, as llama.cpp computes them."""
    import llama_cpp

    llama = llama_cpp.Llama(str(file), n_ctx=WINDOW, n_batch=WINDOW, logits_all=True, verbose=False)
    total, count = 0.0, 0
    for prompt, answer in rows:
        llama.reset()
        llama.eval([*prompt, *answer])
        logits = llama.scores[len(prompt) - 1 : len(prompt) + len(answer) - 1].astype(np.float64)
        logits -= logits.max(1, keepdims=True)
        chosen = logits[np.arange(len(answer)), answer] - np.log(np.exp(logits).sum(1))
        total, count = total - chosen.sum(), count + len(answer)
    llama.close()
    return float(np.exp(total / count))


def measured(squad: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Perplexities by model and type, and how long each training took."""
    from finetune.export import gguf
    from finetune.export.quantise import quantise
    from rag_app.engines import checkpoints
    from rag_app.engines.layout import Layout

    examples = paragraphs(squad)
    base, tokenizer = checkpoints.load(checkpoints.find(None), "16-bit", "cpu")
    layout = Layout("base", tokenizer)
    held = [(layout.prompt(one.messages()), layout.answer(one.answer)) for one in examples if one.part == "test"]
    held = [row for row in held if len(row[0]) + len(row[1]) <= WINDOW][: options.held]
    found: dict[str, Any] = {"perplexity": {}, "seconds": {}, "tokens": sum(len(answer) for _, answer in held)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_examples((one for one in examples if one.part == "train"), folder / "train.jsonl")
        for title, kind in (("as it is", None), ("trained", None), ("trained rounded", options.type)):
            model = base.float()
            if title != "as it is":
                model, report = trained(folder / "train.jsonl", folder / title, kind, options)
                found["seconds"][title] = report["seconds"]
            gguf.write(model, tokenizer, folder / "f32.gguf", "f32")
            quantise(folder / "f32.gguf", folder / "small.gguf", options.type)
            found["perplexity"][title] = {
                "f32": perplexity(folder / "f32.gguf", held),
                options.type: perplexity(folder / "small.gguf", held),
            }
            print(title, found["perplexity"][title], flush=True)
    return found


def show(found: dict[str, Any], kind: str) -> None:
    """A table."""
    right = found["perplexity"]["trained"]["f32"]
    plain = found["perplexity"]["trained"][kind] - right
    print(f"\n| | f32 | {kind} | loss of the export | share of the plain loss |\n|---|---|---|---|---|")
    for title, values in found["perplexity"].items():
        loss = values[kind] - (values["f32"] if title == "as it is" else right)
        share = f"{loss / plain:.2f}" if title != "as it is" else ""
        print(f"| {title} | {values['f32']:.3f} | {values[kind]:.3f} | {loss:.3f} | {share} |")


def main() -> None:
    """Measures, prints, and writes results/qat.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--squad", type=Path, required=True, help="folder with train_corpus.jsonl")
    parser.add_argument("--type", choices=("Q4_0", "Q8_0"), default="Q4_0")
    parser.add_argument("--adapter", choices=("lora", "full"), default="lora")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--steps", type=int, default=120, help="of the optimiser, 8 paragraphs each")
    parser.add_argument("--held", type=int, default=60, help="paragraphs to measure on")
    parser.add_argument("--out", type=Path, default=RESULTS / "qat.json")
    options = parser.parse_args()
    found = {
        "machine": machine(),
        "options": {k: str(v) for k, v in vars(options).items() if k not in ("out", "squad")},
    }
    found |= measured(options.squad, options)
    show(found, options.type)
    options.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
