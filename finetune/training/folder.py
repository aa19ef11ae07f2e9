"""The folder of a run: who writes into it, what a run goes on from, and what stays in the end. Trains nothing."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune.config import Config
from finetune.errors import CheckpointInvalid, ConfigInvalid
from finetune.example import Example
from finetune.training import checkpoints, heldout
from index import folders
from index.console import warn

ADAPTER = "adapter"
RUN = "run.json"
CHANGEABLE = frozenset(
    {
        "output_dir", "resume_from_checkpoint", "num_epochs", "max_steps", "device", "gradient_checkpointing",
        "flash_attention", "logging_steps", "saves_per_epoch", "save_steps", "save_total_limit", "evals_per_epoch",
        "eval_steps", "eval_samples", "early_stopping_patience", "use_tensorboard", "wandb_project",
        "mlflow_experiment_name", "fsdp", "fsdp_config", "deepspeed", "base_model", "datasets", "test_datasets",
    }
)  # fmt: skip
"""Settings that may be others when a run goes on. Models and data are told by their content, wherever they are."""
LEFT_OUT = frozenset(
    {
        "optimizer.pt", "scheduler.pt", "trainer_state.json", "training_args.bin", folders.COMPLETE,
        "optimizer.bin", "pytorch_model_fsdp.bin", "latest", "zero_to_fp32.py",
    }
)  # fmt: skip
"""What a checkpoint holds beside the adapter."""


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Makes the folder and keeps other runs out of it until the end, or the process's death.

    Raises:
        ConfigInvalid: a run is writing into it.
        OSError: it cannot be made.
    """
    out.mkdir(parents=True, exist_ok=True)
    with folders.held(out) as free:
        if free is False:
            raise ConfigInvalid(f"another run is writing into '{out}': wait for it, or give another output_dir")
        yield


def check_free(config: Config, out: Path, force: bool) -> None:
    """Refuses that a run which goes on from no checkpoint replaces what another one left, unless told to.

    Raises:
        ConfigInvalid: there is an adapter, or there are checkpoints that nobody has asked to go on from.
    """
    if force:
        return
    if (out / ADAPTER).exists():
        raise ConfigInvalid(
            f"'{out}' holds a finished run: give --force to replace it, --resume to train it further, or another "
            "output_dir"
        )
    if checkpoints.some(out) and not config.resume_from_checkpoint:
        raise ConfigInvalid(
            f"'{out}' holds the checkpoints of a run that was cut short: --resume goes on from them, --force begins "
            "anew"
        )


def origin(config: Config, out: Path) -> Path | None:
    """The checkpoint that a run goes on from; None where it begins.

    Raises:
        CheckpointInvalid: the one that is named is not whole.
    """
    wanted = config.resume_from_checkpoint
    if isinstance(wanted, str):
        return _named(Path(wanted))
    return checkpoints.latest(out, warn) if wanted else None


def _named(folder: Path) -> Path:
    if lack := folders.whole(folder):
        other = checkpoints.latest(folder.parent)
        remedy = f"give '{other}', the newest whole one" if other else "start anew without resume_from_checkpoint"
        raise CheckpointInvalid(f"the checkpoint '{folder}' is not whole ({lack}): {remedy}")
    return folder


def check(checkpoint: Path, ran: Mapping[str, Any]) -> None:
    """Refuses to go on with other settings, data or weights than those that a checkpoint is made with.

    Args:
        checkpoint: a whole one.
        ran: of `machine.what_ran`, now.

    Raises:
        ConfigInvalid: naming the first that differs.
    """
    if not (checkpoint / RUN).is_file():  # of another program
        return
    was = json.loads((checkpoint / RUN).read_text("utf-8"))
    for name in sorted(was["config_with_defaults"].keys() - CHANGEABLE):
        old, new = was["config_with_defaults"][name], ran["config_with_defaults"].get(name)
        if old != new:
            raise ConfigInvalid(
                f"the run in '{checkpoint}' has {name}: {_shown(old)}, and this one has {_shown(new)}: "
                "set it back, or begin anew with --force"
            )
    for name, old, new in (
        ("base model", was["base_model"]["fingerprint"], ran["base_model"]["fingerprint"]),
        ("data", _hashes(was), _hashes(ran)),
    ):
        if old != new:
            raise ConfigInvalid(
                f"the run in '{checkpoint}' has another {name}: give the same, or begin anew with --force"
            )


def _hashes(ran: Mapping[str, Any]) -> list[str]:
    return [one["sha256"] for one in ran["data"].values()]


def _shown(value: Any) -> str:
    return json.dumps(value).strip('"')


def steps_of(checkpoint: Path) -> int:
    """How many steps of its run are done."""
    state = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
    return int(state["global_step"])


def keep(
    source: Path, out: Path, result: Mapping[str, Any], held: Sequence[Example] = (), tokenizer: Any = None
) -> None:
    """Makes the adapter in a checkpoint the run's own.

    Args:
        source: the checkpoint. From its files, as of a model whose weights are shared out no process has all.
        out: the run's folder.
        result: what `run.json` holds.
        held: questions that it was not trained on.
        tokenizer: put beside, where the adapter is a model to serve.

    Raises:
        OSError: the disk is full; an adapter that was there is still there.
    """
    with folders.staged(out / ADAPTER) as part:
        for path in source.iterdir():
            if path.is_file() and path.name not in LEFT_OUT and not path.name.startswith("rng_state"):
                shutil.copy2(path, part / path.name)
        if tokenizer:
            tokenizer.save_pretrained(part)
        heldout.write(held, part)
        (part / RUN).write_text(json.dumps(result, indent=1, default=str), "utf-8")
