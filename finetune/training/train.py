"""One run of training, from its configuration to an adapter that is kept. The steps are the trainer's; this prepares.

OUT/adapter/          the best one: weights, run.json (what ran, prompt version, base model, scores), complete.json, and
                      heldout.jsonl, questions to measure it on
OUT/checkpoint-40/    adapter, optimiser, random states: what `resume_from_checkpoint` goes on from
OUT/curves.html       loss, scores and speed over the steps
OUT/data.json         what the run was trained and validated on: counts, lengths, what was left out
OUT/runs/             for TensorBoard
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from finetune.config import Config
from finetune.data.duplicates import distinct
from finetune.data.mixture import mixed
from finetune.data.records import load_examples
from finetune.data.report import Report
from finetune.data.splits import split
from finetune.errors import ConfigInvalid, DatasetEmpty
from finetune.example import Example
from finetune.training import checkpoints, estimate, folder, heldout, machine
from finetune.training.progress import Line
from finetune.training.rows import Row, rows, tokens
from index.console import warn
from index.paths import home

ANSWER = 96
"""Most tokens of an answer while training."""
FEW = 20
"""Steps of the optimiser below which somebody should be told that there are so few."""


@dataclass(frozen=True)
class Prepared:
    """What a run needs to know before weights are loaded."""

    train: list[Row]
    examples: list[Example]
    validation: list[Example]
    heldout: list[Example]
    report: Report
    layout: Any
    source: Any


def train(
    config: Config,
    name: str = "run",
    force: bool = False,
    trainer: Callable[..., Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains as configured and keeps the best adapter.

    Args:
        config: from `finetune.config.read_config`.
        name: of the run, where the configuration names no folder.
        force: whether what another run left in the folder may be replaced.
        trainer: makes another trainer than `AnswerTrainer`, of the same arguments; called once all else is ready.
        facts: what `run.json` shall hold beside.

    Returns:
        what `run.json` holds.

    Raises:
        RagError: see `finetune.errors`; earlier checkpoints stay whole.
    """
    out = Path(config.output_dir) if config.output_dir else home() / "runs" / name
    _check_launch(config)
    if not config.resume_from_checkpoint:
        folder.check_free(config, out, force)  # at once, and again when no other run can change it
    prepared = prepare(config)
    needed = estimate.estimate(config, estimate.described(prepared.source.where), *longest(prepared.train))
    estimate.check(needed, estimate.available(config.device))
    with folder.held(out) if _first() else nullcontext():
        resumed = folder.origin(config, out)
        if not resumed:
            folder.check_free(config, out, force)
        if _first():
            (out / "data.json").write_text(json.dumps(prepared.report.as_dict(), indent=1), "utf-8")
        try:
            return _run(config, prepared, out, resumed, trainer, facts or {}, force)
        except KeyboardInterrupt:
            how = "go on with --resume" if checkpoints.some(out) else "no checkpoint was saved yet"
            raise KeyboardInterrupt(f"interrupted; {how}") from None


def _check_launch(config: Config) -> None:
    """Refuses settings that need what is not here."""
    import torch

    if config.flash_attention and not (torch.cuda.is_available() and find_spec("flash_attn")):
        raise ConfigInvalid("flash_attention needs a GPU and the package flash-attn: remove it, or install that")
    if config.deepspeed and not Path(config.deepspeed).is_file():
        raise ConfigInvalid(f"deepspeed: '{config.deepspeed}' is no file: name one, such as examples/launch/zero2.json")
    if _by_deepspeed(config) and not find_spec("deepspeed"):
        raise ConfigInvalid("deepspeed needs its package: run pip install deepspeed, or remove the key")
    if config.fsdp and "WORLD_SIZE" not in os.environ:
        raise ConfigInvalid("fsdp shards a model over processes: start it by accelerate launch, or remove the key")


def prepare(config: Config) -> Prepared:
    """Reads and tokenises the data; loads no weights.

    Raises:
        DatasetEmpty: nothing is left to train on.
        RecordInvalid: a record cannot be used, and `on_bad_record` is stop.
        ModelNotFound, ModelInvalid: of the base model, or its tokenizer.
    """
    from rag_app.engines import checkpoints as models
    from rag_app.engines.layout import Layout

    source = models.settled(models.find(config.base_model))
    layout = Layout(source.name, models.tokenizer(source))
    if not config.datasets:
        raise ConfigInvalid("datasets: none is named: write datasets: [{path: FILE}]")
    examples, report = load_examples(config.datasets, config)
    report.layout = layout
    training, validation = _parts(config, examples, report)
    held = heldout.chosen([*(one for one in examples if one.part == "test"), *validation], config.seed)
    if not training:
        raise DatasetEmpty("no example is left to train on: see what was dropped, or add data")
    training = mixed(training, config.mixture, config.seed, 0)
    skipped: list[tuple[str, str]] = []
    made = rows(tokens(training, layout, config, skipped), config)
    validation = [one for one in validation if tokens([one], layout, config, skipped)]
    report.dropped += skipped
    if not made:
        raise DatasetEmpty("every example is longer than sequence_len: raise it, or shorten them")
    return Prepared(made, training, validation, held, report, layout, source)


def _parts(config: Config, examples: list[Example], report: Report) -> tuple[list[Example], list[Example]]:
    """Training and validation; what is marked as test is never touched."""
    if config.test_datasets:
        others, _ = load_examples(config.test_datasets, config)
        held = [replace(one, part="validation") for one in others]
        examples = distinct([*(one for one in examples if one.part == "train"), *held], report)
    elif not any(one.part == "validation" for one in examples) and config.val_set_size:
        examples = split(examples, config.val_set_size, 0.0, config.seed)
    training = [one for one in examples if one.part == "train"]
    validation = [one for one in examples if one.part == "validation"]
    report.examples = [*training, *validation]
    return training, validation


def longest(made: Sequence[Row]) -> tuple[int, int]:
    """Tokens of the longest row, and most labels of one."""
    return max(map(len, made)), max(sum(label >= 0 for label in row.labels) for row in made)


def _run(
    config: Config,
    prepared: Prepared,
    out: Path,
    resumed: Path | None,
    make: Callable[..., Any] | None,
    facts: Mapping[str, Any],
    force: bool,
) -> dict[str, Any]:
    from transformers import TrainerState

    from finetune import methods
    from finetune.training import curves
    from finetune.training.trainer import AnswerTrainer, Evaluate, LargePages, Method
    from rag_app.engines.checkpoints import find

    steps = Steps.of(config, len(prepared.train))
    done = folder.steps_of(resumed) if resumed else 0
    if done > steps.total:
        raise ConfigInvalid(f"'{resumed}' is past step {steps.total}, the run's last: raise max_steps or num_epochs")
    # Before data and repository can change.
    ran = machine.what_ran(config, [Path(one.path) for one in config.datasets], find(config.base_model))
    if resumed:
        folder.check(resumed, ran)
    model, tokenizer = _model(config, prepared, resumed, steps.total)
    settings = arguments(config, out, steps, str(model.device.type))
    trainer = (make or AnswerTrainer)(model, prepared.train, config, settings, tokenizer)
    trainer.ran = {**ran, "method": config.adapter, **facts}
    trainer.add_callback(Method(config))
    if model.device.type == "cpu":
        trainer.add_callback(LargePages())
    watched = _Watched(config, prepared)
    if prepared.validation:
        trainer.add_callback(Evaluate(trainer, steps.evaluate, watched))
    elif _first():
        warn("nothing to validate on: the last checkpoint is kept, whatever it is worth")
    if _first():
        if few := steps.few(config):
            warn(few)
        trainer.add_callback(_progress(trainer, steps.total, config.metric_for_best_model))
        if force and not resumed:
            checkpoints.prune(out, 0, None)
    if resumed and done == steps.total:  # it ended between its last checkpoint and its adapter
        trainer.state = TrainerState.load_from_json(str(resumed / "trainer_state.json"))
    else:
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    result = {
        **trainer.ran,
        "trainable": methods.trainable(model),
        "steps": trainer.state.global_step,
        "best_step": trainer.state.best_global_step,
        "history": trainer.state.log_history,
        "examples": {"train": len(prepared.examples), "validation": len(prepared.validation)},
    }
    if trainer.args.should_save:
        source = trainer.best() or out / f"checkpoint-{trainer.state.global_step}"
        folder.keep(source, out, result, prepared.heldout, tokenizer if config.adapter == "full" else None)
        curves.write(trainer.state.log_history, out, trainer.state.best_global_step)
    trainer.accelerator.wait_for_everyone()
    return {**result, "adapter": str(out / folder.ADAPTER)}


@dataclass(frozen=True)
class Steps:
    """Of the optimiser."""

    total: int
    warmup: int
    save: int
    evaluate: int

    @classmethod
    def of(cls, config: Config, row_count: int) -> "Steps":
        """As configured, with so many rows an epoch."""
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        batches = math.ceil(math.ceil(row_count / processes) / config.micro_batch_size)
        epoch = max(1, math.ceil(batches / config.gradient_accumulation_steps))
        total = config.max_steps or max(1, math.ceil(epoch * config.num_epochs))
        share = 0.03 if config.warmup_ratio is None else config.warmup_ratio
        warmup = int(total * share) if config.warmup_steps is None else config.warmup_steps
        save = config.save_steps or math.ceil(epoch / (config.saves_per_epoch or 1))
        evaluate = config.eval_steps or math.ceil(epoch / (config.evals_per_epoch or 1))
        return cls(total, warmup, min(save, total), min(evaluate, total))

    def few(self, config: Config) -> str:
        """A line for a person where there are too few to learn much in; nothing else."""
        key = "max_steps" if config.max_steps else "num_epochs"
        count = f"{self.total} step{'s' * (self.total > 1)}"
        now = f"raise {key} (now {getattr(config, key):g})"
        return f"only {count} of the optimiser in all, which teaches little: {now}" if self.total < FEW else ""


def _model(config: Config, prepared: Prepared, resumed: Path | None, steps: int) -> tuple[Any, Any]:
    from transformers import set_seed

    from finetune import methods
    from finetune.training import attention, base

    set_seed(config.seed)
    model, tokenizer = base.load(config, prepared.source, _device(config))
    if config.flash_attention:
        model.set_attn_implementation("flash_attention_2")
    elif model.device.type != "cuda":
        model.set_attn_implementation(attention.register())
    if resumed:
        model = methods.load(model, resumed, trainable=True)
    else:
        model = methods.attach(model, config, tokenizer, steps=steps)
    if config.qat:
        from finetune.compress import qat

        qat.attach(model, config)
    return model.train(), tokenizer


def _device(config: Config) -> str:
    """As PyTorch names it; of several processes, each has its own GPU."""
    import torch

    if config.device == "auto" and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return "cpu" if config.device == "auto" else config.device


def _first() -> bool:
    """Whether this is the one process that writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def arguments(config: Config, out: Path, steps: Steps, device: str) -> Any:
    """The trainer's own settings, an `SFTConfig`."""
    from trl.trainer.sft_config import SFTConfig

    from finetune import methods

    return SFTConfig(
        output_dir=str(out),
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        max_steps=steps.total,
        learning_rate=methods.learning_rate(config),
        lr_scheduler_type=config.lr_scheduler,
        warmup_steps=steps.warmup,
        max_grad_norm=config.max_grad_norm,
        weight_decay=config.weight_decay,
        train_sampling_strategy="group_by_length" if config.group_by_length else "random",
        activation_checkpointing=config.gradient_checkpointing,  # its name since transformers 5.23
        seed=config.seed,
        data_seed=config.seed,
        logging_steps=config.logging_steps or max(1, min(10, steps.total // 10)),
        logging_first_step=True,
        save_strategy="steps",
        save_steps=steps.save,
        report_to=_reporters(config),
        disable_tqdm=True,
        use_cpu=device == "cpu",
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        bf16=_by_deepspeed(config),  # the weights are anyway, and nothing is cast on the way; but it has to be told
        fp16=False,
        dataloader_pin_memory=device == "cuda",
        ddp_find_unused_parameters=False,
        fsdp=" ".join(config.fsdp) or None,
        fsdp_config=dict(config.fsdp_config) or None,
        deepspeed=config.deepspeed,
    )


def _by_deepspeed(config: Config) -> bool:
    return config.deepspeed is not None or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"


def _reporters(config: Config) -> list[str]:
    wanted = {
        "tensorboard": config.use_tensorboard,
        "wandb": config.wandb_project is not None,
        "mlflow": config.mlflow_experiment_name is not None,
    }
    for package in ("wandb", "mlflow"):
        if wanted[package] and not find_spec(package):
            key = "wandb_project" if package == "wandb" else "mlflow_experiment_name"
            raise ConfigInvalid(f"{key} needs {package}: run pip install {package}, or remove the key")
    os.environ.update({"WANDB_PROJECT": config.wandb_project} if config.wandb_project else {})
    if config.mlflow_experiment_name:
        os.environ["MLFLOW_EXPERIMENT_NAME"] = config.mlflow_experiment_name
    return [package for package, on in wanted.items() if on] or ["none"]


class _Watched:
    """Validation while training: the loss, and scores of generated answers, on a sample chosen by task."""

    def __init__(self, config: Config, prepared: Prepared) -> None:
        from finetune.evaluation.evaluate import sample

        self.config, self.layout = config, prepared.layout
        self.examples = sample(prepared.validation, config.eval_samples or 256, config.seed)
        self.rows = rows(tokens(self.examples, prepared.layout, config, []), config)

    def __call__(self, model: Any, step: int) -> dict[str, float]:
        import torch

        from finetune.evaluation.evaluate import score
        from finetune.evaluation.generate import answers, fits

        was, _ = model.training, model.eval()
        try:
            with torch.no_grad():
                found = {"loss": self._loss(model)}
                asked = [one for one in self.examples if fits(model, self.layout.prompt(one.messages()), ANSWER)]
                if not self.config.eval_samples or not asked:
                    return found
                scores = score(asked, answers(model, self.layout, asked, max_tokens=ANSWER))
        finally:
            model.train(was)
        return {**found, "score": scores.score, **scores.flat()}

    def _loss(self, model: Any) -> float:
        from finetune.config import VIRTUAL
        from finetune.training.forward import labelled, losses
        from finetune.training.rows import collate, collate_padded

        total, count = 0.0, 0
        for row in self.rows:
            batch = (collate_padded if self.config.adapter in VIRTUAL else collate)([row.as_dict()])
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            logits, labels, _ = labelled(model, batch, model.dtype)
            total, count = total + float(losses(logits, labels).sum()), count + len(labels)
        return total / max(1, count)


def _progress(trainer: Any, total: int, metric: str) -> Any:
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        """Feeds the line that a person reads."""

        line = Line(total, metric)

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.line.step(state.global_step, trainer.computed)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
            self.line.log(state.global_step, logs or {})
            if "loss" in (logs or {}):
                state.log_history[-1]["tokens_per_second"] = round(self.line.tokens_per_second, 1)

        def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.line.close()

    return Progress()
