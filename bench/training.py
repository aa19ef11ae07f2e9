"""LoRA in bf16 here, against TRL's SFTTrainer used plainly: tokens/s, peak memory and loss on the same batches.

Run on an idle machine: .venv/bin/python bench/training.py --squad ../shared/data/squad
Every contender trains in a process of its own on the same examples in the same order, 16 to a step: SQuAD questions of
the training part with four passages each, four questions to the same passages. Tokens are those of the examples, one by
one; neither padding nor what is shared counts.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.machine import machine
from finetune.config import Config
from finetune.example import Example, read_examples, write_examples

CONTENDERS = ("ours", "ours, no shared prefixes", "TRL, as it comes", "TRL, no gradient checkpointing")
HELD_OUT, PER_STEP, SHARE = 64, 16, 4


def examples(squad: Path, file: Path, count: int) -> None:
    """Questions with the passages that hybrid search finds for the first of four."""
    from index import Index
    from index.encoder import SentenceEncoder
    from rag_app.evaluate import index_corpus
    from rag_app.prompt import NOT_FOUND
    from rag_app.questions import read_questions

    encoder = SentenceEncoder()
    directory, prefix = index_corpus(squad / "train_corpus.jsonl", encoder)
    made: list[Example] = []
    firsts = set[str]()  # no two rows may begin alike, or they would be one
    with Index.open(directory, encoder) as index:
        for _, several in groupby(read_questions(squad / "train_questions.jsonl"), key=lambda one: one.evidence):
            asked = [one for one in several if one.answers][:SHARE]
            if len(asked) < SHARE:
                continue
            hits = index.search(asked[0].question, 4)
            found = any(hit.source.removeprefix(prefix) in asked[0].evidence[0].documents for hit in hits)
            passages = tuple(hit.text for hit in hits)
            if passages[0] in firsts:
                continue
            firsts.add(passages[0])
            made += [
                Example(one.id, "question_answering", one.question, one.answers[0] if found else NOT_FOUND, passages)
                for one in asked
            ]
            if len(made) >= count:
                break
    write_examples(made[:count], file)


def ours(file: Path, base: str, steps: int, share: bool) -> tuple[Any, Any, Any]:
    """The trainer, its optimiser's step as wide as the others'."""
    import torch
    from trl import SFTConfig

    from finetune import methods
    from finetune.training import attention
    from finetune.training.rows import rows, tokens
    from finetune.training.trainer import AnswerTrainer

    accumulated = PER_STEP // SHARE if share else PER_STEP
    config = Config(share_prefixes=share, learning_rate=1e-3, gradient_accumulation_steps=accumulated)
    model, tokenizer, layout = loaded(base)
    model.set_attn_implementation(attention.register())
    model = methods.attach(model, config, tokenizer)
    made = rows(tokens(list(read_examples(file))[HELD_OUT:], layout, config, []), config)
    arguments = SFTConfig(
        **common(steps), per_device_train_batch_size=1, gradient_accumulation_steps=accumulated, bf16=False,
        gradient_checkpointing=False, max_length=None, dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
    )  # fmt: skip
    torch.manual_seed(0)
    return AnswerTrainer(model, made, config, arguments, tokenizer), model, layout


def theirs(file: Path, base: str, steps: int, checkpointing: bool) -> tuple[Any, Any, Any]:
    """SFTTrainer with its defaults, but for the learning rate, the order, and the loss on answers alone."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    model, tokenizer, layout = loaded(base)
    made = []
    for one in list(read_examples(file))[HELD_OUT:]:
        prompt, answer = layout.prompt(one.messages()), layout.answer(one.answer)
        made.append({"input_ids": prompt + answer, "completion_mask": [0] * len(prompt) + [1] * len(answer)})
    arguments = SFTConfig(
        **common(steps), per_device_train_batch_size=4, gradient_accumulation_steps=PER_STEP // 4,
        gradient_checkpointing=checkpointing, completion_only_loss=True,
    )  # fmt: skip
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model, arguments, train_dataset=Dataset.from_list(made), processing_class=tokenizer, peft_config=lora
    )
    return trainer, trainer.model, layout


def loaded(base: str) -> tuple[Any, Any, Any]:
    """The model in bf16, its tokenizer and its layout."""
    import torch

    from rag_app.engines import checkpoints
    from rag_app.engines.layout import Layout

    torch.manual_seed(0)
    model, tokenizer = checkpoints.load(checkpoints.find(base or None), "16-bit", "cpu")
    return model.to(torch.bfloat16), tokenizer, Layout(base, tokenizer)


def common(steps: int) -> dict[str, Any]:
    """What all contenders are told."""
    return {
        "output_dir": tempfile.mkdtemp(), "max_steps": steps, "learning_rate": 1e-3, "lr_scheduler_type": "cosine",
        "logging_steps": 1, "save_strategy": "no", "report_to": ["none"], "disable_tqdm": True, "use_cpu": True,
        "train_sampling_strategy": "sequential", "warmup_steps": 2, "adam_beta2": 0.99, "seed": 0,
    }  # fmt: skip


def measured(name: str, file: Path, base: str, steps: int) -> dict[str, Any]:
    """One contender, in this process."""
    import torch

    from finetune.training.forward import labelled, losses
    from finetune.training.rows import collate, rows, tokens

    made = ours if name.startswith("ours") else theirs
    trainer, model, layout = made(file, base, steps, name in ("ours", "TRL, as it comes"))
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    status = Path("/proc/self/status").read_text("utf-8")  # VmHWM is reset by exec, ru_maxrss is not
    peak = int(status.split("VmHWM:")[1].split()[0]) / 2**20
    config = Config()
    every = tokens(list(read_examples(file)), layout, config, [])
    trained = every[HELD_OUT : HELD_OUT + PER_STEP * steps]
    total = count = 0.0
    model.eval()
    with torch.no_grad():
        for row in rows(every[:HELD_OUT], config):
            logits, labels, _ = labelled(model, collate([row.as_dict()]), torch.bfloat16)
            total, count = total + float(losses(logits, labels).sum()), count + len(labels)
    useful = sum(len(one.prompt) + len(one.answer) for one in trained)
    history = [one["loss"] for one in trainer.state.log_history if "loss" in one]
    return {
        "contender": name,
        "tokens_per_second": round(useful / seconds, 1),
        "seconds": round(seconds, 1),
        "peak_gib": round(peak, 2),
        "train_loss": [round(float(loss), 4) for loss in history],
        "held_out_loss": round(total / count, 4),
    }


def main() -> None:
    """Prints a table; `--json FILE` keeps the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--squad", type=Path, default=Path("../shared/data/squad"))
    parser.add_argument("--base", default="")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print("RESULT", json.dumps(measured(options.run[0], Path(options.run[1]), options.base, options.steps)))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "examples.jsonl"
        examples(options.squad, file, HELD_OUT + PER_STEP * options.steps)
        results = [_apart(name, file, options) for name in CONTENDERS]
    print("| contender | tokens/s | peak GiB | held-out loss |\n|---|---|---|---|")
    for one in results:
        print(f"| {one['contender']} | {one['tokens_per_second']:.0f} | {one['peak_gib']} | {one['held_out_loss']} |")
    if options.json:
        options.json.write_text(
            json.dumps({"machine": machine(), "steps": options.steps, "results": results}, indent=1)
        )


def _apart(name: str, file: Path, options: argparse.Namespace) -> dict[str, Any]:
    command = [
        sys.executable,
        __file__,
        "--run",
        name,
        str(file),
        "--steps",
        str(options.steps),
        "--base",
        options.base,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    print(found, file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    main()
