"""TRL's SFTTrainer on rows: logits only where there is a label, fp32 copies of 16-bit weights, whole checkpoints.

Knows no files of data and no configuration files; `finetune.training.train` prepares what it is given.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from finetune import methods
from finetune.config import VIRTUAL, Config
from finetune.errors import TrainingFailed
from finetune.training import checkpoints, pages
from finetune.training.folder import RUN
from finetune.training.forward import labelled, losses
from finetune.training.optimizer import MasterWeights
from finetune.training.rows import IGNORED, Row, collate, collate_padded
from index import folders

Evaluation = Callable[[Any, int], Mapping[str, float]]
"""Scores of a model at a step: 'loss', and 'score' where examples were answered."""


class AnswerTrainer(SFTTrainer):
    """Trains on rows; what is evaluated and when it ends early is told by `Evaluate`."""

    def __init__(self, model: Any, made: Sequence[Row], config: Config, arguments: SFTConfig, tokenizer: Any) -> None:
        self.config = config
        self.ran: Mapping[str, Any] = {}
        """What a checkpoint tells of its run, in `run.json`."""
        self.useful = self.computed = self.seen = 0
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list([row.as_dict() for row in made]),
            data_collator=collate_padded if config.adapter in VIRTUAL else collate,
            processing_class=tokenizer,
        )
        self.remove_callback(PrinterCallback)  # `progress.Line` says it
        # Losses are divided by the labels of the whole step here, once.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga: Any = True

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Mean cross-entropy of the labels, each with its weight; logits (rows, labels, vocabulary) nowhere else."""
        if model.training:
            self.useful += int(inputs["useful"].sum())
            self.seen += int(inputs["examples"].sum())
            self.computed += inputs["labels"].numel()
        network: Any = self.model
        logits, labels, weights = labelled(model, inputs, network.dtype)
        total = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        loss = (self.losses(logits, labels, inputs) * weights).sum() / total
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # whose gradients are averaged
        if model.training and (extra := methods.penalty(network, self.config)) is not None:
            loss = loss + extra / self.current_gradient_accumulation_steps
        return loss

    def losses(self, logits: torch.Tensor, labels: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss of each label: `forward.losses`, or another for distillation.

        Args:
            logits: (labels, vocabulary).
            labels: (labels,).
            batch: what the model was given.

        Returns:
            (labels,) fp32, 0 where a label is IGNORED.
        """
        return losses(logits, labels)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One row or batch.

        Raises:
            TrainingFailed: the loss is no number.
        """
        step: Any = super().training_step
        loss: torch.Tensor = step(*args, **kwargs)
        if not torch.isfinite(loss):
            rate = self._get_learning_rate()
            raise TrainingFailed(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}: lower learning_rate (now {rate:.1e}) "
                "or max_grad_norm, and look at the data; the checkpoints before are whole"
            )
        return loss

    def create_accelerator_and_postprocess(self) -> None:
        """As usual, but that FSDP works on CPUs, too: accelerate asks whether processes have GPUs, and nothing else."""
        state = PartialState()
        if state.distributed_type == DistributedType.MULTI_CPU and os.environ.get("ACCELERATE_USE_FSDP") == "true":
            state.distributed_type = DistributedType.MULTI_GPU  # which becomes FSDP at once
        super().create_accelerator_and_postprocess()

    def create_optimizer(self, model: Any = None) -> Any:
        """The configured optimiser, over fp32 copies where weights have 16 bits."""
        if self.optimizer is None:
            # FSDP shards the weights later and needs them as they are.
            model = self.model if model is None else model
            groups = methods.groups(model, self.config)
            sixteen = any(p.dtype in (torch.bfloat16, torch.float16) for group in groups for p in group["params"])
            plain = self.is_fsdp_enabled or self.is_deepspeed_enabled or not sixteen
            make = partial(_optimizer, self.config)
            self.optimizer = make(groups) if plain else MasterWeights(groups, make)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The configured one, with what the method asks for behind its restarts."""
        made: Any = super().create_scheduler(num_training_steps, optimizer)
        if self.config.adapter == "relora":
            made.lr_lambdas = [partial(self._slowed, plain, num_training_steps) for plain in made.lr_lambdas]
        return made

    def _slowed(self, plain: Callable[[int], float], steps: int, step: int) -> float:
        return plain(step) * methods.rate_factor(self.config, step, steps)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Written beside its place and moved there whole; older ones but the best are removed afterwards."""
        step = self.state.global_step
        place, first = self.folder / f"checkpoint-{step}", self.args.should_save
        with folders.staged(place, step=step) if first else nullcontext() as made:
            part = broadcast_object_list([made])[0]  # of several processes, each writes what it alone knows
            self._write_checkpoint(part)
            self.accelerator.wait_for_everyone()
        if first:
            checkpoints.prune(self.folder, self.config.save_total_limit, self.best())

    def _write_checkpoint(self, part: Path) -> None:
        self.save_model(str(part), _internal_call=True)
        self._save_optimizer_and_scheduler(str(part))
        self._save_rng_state(str(part))
        if self.args.should_save:
            self.state.save_to_json(str(part / "trainer_state.json"))
            (part / RUN).write_text(json.dumps(self.ran, indent=1, default=str), "utf-8")

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The adapter alone, as its method writes it; `state_dict` where processes share the weights out."""
        assert output_dir
        if not self.args.should_save:
            return
        methods.save(self.accelerator.unwrap_model(self.model), Path(output_dir), self.config, state_dict)

    @property
    def folder(self) -> Path:
        """The run's."""
        return Path(self.args.output_dir or "")

    def best(self) -> Path | None:
        """The best checkpoint, or None before the first evaluation."""
        step = self.state.best_global_step
        return self.folder / f"checkpoint-{step}" if step else None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Nothing: the model that is given has the checkpoint's weights already."""


def _optimizer(config: Config, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    rate, decay = methods.learning_rate(config), config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate)
    settings: dict[str, Any] = {
        "lr": rate, "betas": (config.adam_beta1, config.adam_beta2), "eps": config.adam_epsilon, "weight_decay": decay,
    }  # fmt: skip
    device = groups[0]["params"][0].device.type
    paged = config.optimizer is None and config.adapter == "qlora" and device == "cuda"
    name = "paged_adamw_32bit" if paged else config.optimizer
    if name in (None, "adamw_torch") or device != "cuda":  # bitsandbytes' own are made for GPUs
        return torch.optim.AdamW(groups, **settings)
    import bitsandbytes

    kind = {"adamw_8bit": "AdamW8bit", "paged_adamw_32bit": "PagedAdamW32bit", "paged_adamw_8bit": "PagedAdamW8bit"}
    made: torch.optim.Optimizer = getattr(bitsandbytes.optim, kind[str(name)])(groups, **settings)
    return made


class Method(TrainerCallback):
    """Gives a method its turn after every step of the optimiser."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """While the gradients are still there, which AdaLoRA looks at."""
        optimizer = getattr(given["optimizer"], "optimizer", given["optimizer"])
        methods.after_step(given["model"], self.config, state.global_step + 1, state.max_steps, optimizer)


class LargePages(TrainerCallback):
    """Asks for large pages before the 1st, 2nd, 4th, 8th … step: the heap grows ever less, and asking takes time."""

    steps = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Counts from where the run goes on."""
        self.steps += 1
        if not self.steps & (self.steps - 1):
            pages.enlarge()


class Evaluate(TrainerCallback):
    """Evaluates every so many steps, remembers the best, and ends the run when nothing gets better."""

    def __init__(self, trainer: AnswerTrainer, every: int, evaluation: Evaluation) -> None:
        self.trainer, self.every, self.evaluation = trainer, every, evaluation
        self.patience = trainer.config.early_stopping_patience
        self.metric = trainer.config.metric_for_best_model

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Evaluates, before the trainer saves."""
        if state.global_step % self.every and state.global_step != state.max_steps:
            return
        found = dict(self.evaluation(self.trainer.model, state.global_step))
        if self.metric == "score" and "score" not in found:  # nothing was answered
            self.metric = "loss"
        if self.metric not in found:
            raise TrainingFailed(
                f"metric_for_best_model: no '{self.metric}' was measured: write one of {', '.join(sorted(found))}"
            )
        logs_next = control.should_log
        self.trainer.log({f"eval_{name}": value for name, value in found.items()})
        control.should_log = logs_next  # which logging has taken for done
        self._judge(state, control, found[self.metric])

    def _judge(self, state: Any, control: Any, value: float) -> None:
        signed = -value if "loss" in self.metric else value
        if state.best_metric is None or (math.isfinite(signed) and signed > state.best_metric):
            state.best_metric, state.best_global_step = signed, state.global_step
        evaluations = (state.global_step - (state.best_global_step or 0)) // self.every
        if self.patience is not None and evaluations >= self.patience:
            control.should_training_stop = True
        control.should_save = True  # a best one that is not kept would be no use
