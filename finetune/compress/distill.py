"""A student learns a teacher's token distributions (white-box distillation): settings, and the runs that do it."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune.config import VIRTUAL, Config, checked
from finetune.errors import ConfigInvalid, DatasetEmpty, DoesNotFit, MethodInvalid
from finetune.evaluation import adapters
from finetune.example import Example
from rag_app.engines.layout import Layout

RATE = 5e-5
"""Learning rate of `recover`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation:
    """How a student learns from a teacher."""

    beta: float = 0.0
    """Which divergence: 0 is KL(teacher‖student), 1 is KL(student‖teacher), between them is a Jensen-Shannon one."""
    temperature: float = 1.0
    """Logits of both are divided by it."""
    cross_entropy: float = 0.0
    """Share of the loss that is the cross-entropy with the examples' own answers."""
    on_policy: float = 0.0
    """Share of the batches whose answers the student writes itself, as it then is (Agarwal et al. 2024)."""
    max_tokens: int = 64
    """Most tokens of such an answer."""

    def __post_init__(self) -> None:
        for name in ("beta", "cross_entropy", "on_policy"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigInvalid(f"{name} is {getattr(self, name)}: give a number from 0 to 1")
        if not 0 < self.temperature < float("inf"):
            raise ConfigInvalid(f"temperature is {self.temperature}: give a number above 0, such as 2")
        if self.max_tokens < 1:
            raise ConfigInvalid(f"max_tokens is {self.max_tokens}: give a whole number above 0")


def distill(config: Config, teacher: str, how: Distillation, name: str = "run", force: bool = False) -> dict[str, Any]:
    """Trains as configured, towards a teacher instead of, or beside, the examples' answers.

    Args:
        config: of the student.
        teacher: a model or an adapter with the student's tokenizer. If it is `base`, the student's own, the student
            without its adapter is the teacher, and no second model is loaded.
        how: what the loss is.
        name: as of `finetune.training.train.train`.
        force: likewise.

    Returns:
        what `run.json` holds.

    Raises:
        ConfigInvalid: the configuration and the distillation contradict each other.
        MethodInvalid: the teacher has another tokenizer.
        RagError: as of `finetune.training.train.train`.
    """
    from finetune.training.train import train
    from rag_app.engines import checkpoints as models

    if how.on_policy and (config.adapter in VIRTUAL or config.train_on_inputs):
        wrong = f"adapter {config.adapter}" if config.adapter in VIRTUAL else "train_on_inputs"
        raise ConfigInvalid(f"on_policy trains on answers that the student writes, which {wrong} cannot: remove one")
    source = models.settled(models.find(config.base_model))
    tokenizer = models.tokenizer(source)
    adapter = adapters.find(teacher)
    given = adapters.base_of(adapter) if adapter else models.find(config.base_model if teacher == "base" else teacher)
    base = models.settled(given)
    same_tokenizer(models.tokenizer(base), tokenizer, base.name, source.name)
    own = base.where == source.where and not adapter and not config.four_bit
    stop = Layout(source.name, tokenizer).stop()

    def make(model: Any, *others: Any) -> Any:
        from finetune.compress.student import StudentTrainer

        shared = own and hasattr(model, "disable_adapter")
        taught = None if shared else _loaded(given, adapter, model)
        return StudentTrainer(model, *others, teacher=taught, how=how, stop=stop)

    return train(config, name, force, make, {"teacher": teacher, "distillation": asdict(how)})


def same_tokenizer(teacher: Any, student: Any, teacher_name: str, student_name: str) -> None:
    """Token distributions can be compared over the same tokens alone.

    Raises:
        MethodInvalid: they are not.
    """
    if teacher.get_vocab() != student.get_vocab():
        raise MethodInvalid(
            f"the teacher '{teacher_name}' has another tokenizer than '{student_name}', so their distributions cannot "
            "be compared: give a teacher of the same family, or let it write answers with --black-box"
        )


def recover(
    model: Any,
    teacher: Any,
    layout: Layout,
    examples: Sequence[Example],
    steps: int,
    seed: int,
    progress: Callable[[str, int, int], None],
) -> None:
    """Trains all weights of a model, in place, towards the one that it was made from.

    Args:
        model: pruned, for one.
        teacher: as it was before.
        layout: of the tokenizer of both.
        examples: to train on.
        steps: of the optimiser, of 2 rows each.
        seed: of the order.
        progress: is told of each step.

    Raises:
        DatasetEmpty: no example is short enough.
        DoesNotFit: there is too little memory.
    """
    from transformers import PrinterCallback

    from finetune import methods
    from finetune.compress.student import StudentTrainer
    from finetune.training import estimate
    from finetune.training.rows import rows, tokens
    from finetune.training.train import Steps, arguments, longest

    config = checked(
        {"adapter": "full", "max_steps": steps, "gradient_accumulation_steps": 2, "on_bad_record": "skip",
         "learning_rate": RATE, "use_tensorboard": False, "seed": seed},
        "distill",
    )  # fmt: skip
    made = rows(tokens(examples, layout, config, []), config)
    if not made:
        raise DatasetEmpty(f"every example is longer than {config.sequence_len:,} tokens: shorten them")
    _check_room(estimate.estimate(config, model.config.to_dict(), *longest(made)).total, model.device.type)
    with tempfile.TemporaryDirectory() as folder:
        settings = arguments(config, Path(folder), Steps.of(config, len(made)), model.device.type)
        settings.save_strategy = "no"
        model = methods.attach(model, config, layout.tokenizer)
        trainer = StudentTrainer(
            model, made, config, settings, layout.tokenizer, teacher=teacher, how=Distillation(), stop=layout.stop()
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_told(progress))
        trainer.train()
    model.eval()


def _check_room(needed: int, device: str) -> None:
    from finetune.training.estimate import available, gigabytes

    if needed > (free := available(device)):
        raise DoesNotFit(
            f"distilling trains all weights, which needs {gigabytes(needed)}, and {gigabytes(free)} are free: leave "
            "out --distill, or give a smaller model"
        )


def _loaded(base: Any, adapter: Any, student: Any) -> Any:
    """A teacher, where the student is and with the same kind of attention, which knows shared prefixes."""
    from rag_app.engines import checkpoints as models

    device = str(student.device)
    model, _ = adapters.load(adapter, base) if adapter else models.load(base, "auto", device)
    model.set_attn_implementation(student.config._attn_implementation)
    return model if str(model.device) == device else model.to(device)


def _told(progress: Callable[[str, int, int], None]) -> Any:
    from transformers import TrainerCallback

    class Told(TrainerCallback):
        """Tells of each step."""

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            progress("distilling", state.global_step, state.max_steps)

    return Told()
