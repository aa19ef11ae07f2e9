"""What a run of training is told: every key, its range and its contradictions. Loads no model and reads no data.

Keys are Axolotl's where it has them, so that its users feel at home; `base_model`, `sequence_len` and the like mean
here what they mean there. `docs/finetune.md` lists them all.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from finetune.errors import ConfigInvalid
from finetune.example import Task

Method = Literal[
    "full", "lora", "qlora", "dora", "rslora", "lora+", "lora-fa", "vera", "adalora", "ia3", "prompt-tuning",
    "prefix-tuning", "p-tuning", "llama-adapter", "adapter", "delta-lora", "relora",
]  # fmt: skip
METHODS: tuple[Method, ...] = get_args(Method)
RANKED = frozenset({"lora", "qlora", "dora", "rslora", "lora+", "lora-fa", "vera", "adalora", "delta-lora", "relora"})
"""Methods with `lora_r`, whose adapters stand beside linear layers and can be merged into them."""
VIRTUAL = frozenset({"prompt-tuning", "prefix-tuning", "p-tuning"})
"""Methods with virtual tokens before the prompt: their examples share no prefix and no row."""
ALSO = {
    "lr": "learning_rate", "epochs": "num_epochs", "num_train_epochs": "num_epochs", "model": "base_model",
    "model_name_or_path": "base_model", "method": "adapter", "rank": "lora_r", "r": "lora_r", "alpha": "lora_alpha",
    "batch_size": "micro_batch_size", "per_device_train_batch_size": "micro_batch_size", "cutoff_len": "sequence_len",
    "max_length": "sequence_len", "max_seq_length": "sequence_len", "packing": "sample_packing",
    "finetuning_type": "adapter", "dataset": "datasets",
}  # fmt: skip
"""What other programs, LLaMA-Factory, TRL and PEFT among them, call keys of ours."""
Format = Literal["auto", "examples", "squad", "dolly", "alpaca", "chat", "csv", "feedback", "mixed", "gsm8k"]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Width = Annotated[int, Field(ge=1, le=4096)]
"""Of what a method adds: ranks, virtual tokens, bottlenecks."""
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _written(text: str) -> str:
    if "\0" in text or (not text.isascii() and any("\ud800" <= one <= "\udfff" for one in text)):
        raise ValueError("there is a character in it that no name has")
    return text


Name = Annotated[str, AfterValidator(_written)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_flag(cls, value: Any, about: ValidationInfo) -> Any:
        """Pydantic takes true for 1."""
        kind = cls.model_fields[str(about.field_name)].annotation
        if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
            raise ValueError(f"{str(value).lower()} is none of its values")
        return value


class Data(_Part):
    """One file of examples."""

    path: Name
    """The file; relative to the YAML file that names it."""
    type: Format = "auto"
    """What its lines are; auto looks at the first ones."""
    task: Task | None = None
    """The task of lines that do not say theirs."""
    question: str | None = None
    """csv: the column of questions; likewise `answer`, `context` and `document`."""
    answer: str | None = None
    context: str | None = None
    document: str | None = None


class Config(_Part):
    """A run of training. Every key may stand in the YAML file or be set by `--set key=value`."""

    base_model: Name | None = None
    """A folder, a Hub id or a GGUF file; by default $RAG_MODEL or the bundled model."""
    adapter: Method = "lora"
    """The method; `full` trains every weight."""
    output_dir: Name | None = None
    """Where the adapter and its checkpoints go; by default `runs/NAME-OF-THE-FILE` under the home."""

    datasets: tuple[Data, ...] = ()
    """Files to train on."""
    test_datasets: tuple[Data, ...] = ()
    """Files to validate on while training. Without any, the `validation` part of `datasets`, else `val_set_size`."""
    val_set_size: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the documents that is held out, where nothing else is there to validate on; 0 holds out none."""
    mixture: dict[Task, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    """Weight of each task in an epoch: shares of examples drawn, by default as many as there are. A task that is not
    named while others are is left out."""
    on_bad_record: Literal["stop", "skip"] = "stop"
    """What a record does that cannot be used: stop the run with one line, or be counted in the report."""
    sequence_len: Annotated[int, Field(ge=1, le=2**24)] = 2048
    """Most tokens of an example, and of a row where rows are packed; a longer example is a bad record."""
    sample_packing: bool = False
    """Rows of several examples, each blind to the others, up to `sequence_len`."""
    share_prefixes: bool = True
    """Examples with the same passages are computed in one row that holds those once; gradients are the same."""
    train_on_inputs: bool = False
    """Loss on the prompt, too."""
    abstention_weight: Rate = 1.0
    """What the loss of examples whose answer is that the documents do not say is multiplied with. Below 1 the model
    abstains less often."""

    load_in_4bit: bool | None = None
    """NF4 with double quantisation for the frozen weights; by default as `adapter: qlora` wants it."""
    nf4_storage: Literal["auto", "packed", "rounded"] = "auto"
    """packed: 4 bits in memory. rounded: 16 bits in memory on NF4's grid, the same values, twice as fast on a CPU.
    auto: packed on a GPU, rounded on a CPU."""
    bf16: bool | Literal["auto"] = "auto"
    """16-bit weights and activations; auto where the processor is fast at them."""
    device: Name = "auto"
    """As PyTorch names it; auto takes a GPU where there is one."""
    flash_attention: bool = False
    """FlashAttention 2; needs a GPU and its package, and rows that share no prefix."""
    gradient_checkpointing: bool = False
    """Less memory for activations, a third more time."""

    lora_r: Width = 16
    """Rank."""
    lora_alpha: Rate = 32
    """The update is scaled by alpha/r; by alpha/sqrt(r) with rslora."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of LoRA's input."""
    lora_target_linear: bool = True
    """All linear layers but the head."""
    lora_target_modules: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names of layers instead, such as q_proj."""
    loraplus_lr_ratio: Annotated[float, Field(ge=1)] = 16.0
    """lora+: the learning rate of B over that of A."""
    relora_steps: Positive | None = None
    """relora: optimiser steps between two merges; by default a quarter of the run."""
    num_virtual_tokens: Width = 20
    """prompt-tuning, prefix-tuning, p-tuning, llama-adapter."""
    adapter_layers: Positive | None = None
    """llama-adapter: how many of the last layers get a prompt; by default all but two."""
    bottleneck_size: Width = 64
    """adapter: width of the bottleneck."""
    qat: Literal["Q4_0", "Q8_0"] | None = None
    """Train with the weights rounded on the grid of this GGUF type."""

    micro_batch_size: Positive = 1
    """Rows computed at a time on each device."""
    gradient_accumulation_steps: Positive = 4
    """Times that before the optimiser takes a step."""
    num_epochs: Rate = 3.0
    """Times that every row is computed; 0.5 is half of them."""
    max_steps: Positive | None = None
    """Steps of the optimiser; ends the run before `num_epochs`."""
    learning_rate: Rate | None = None
    """By default the method's own, from 5e-5 for full to 3e-2 for prompt-tuning."""
    lr_scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """How the learning rate goes on after the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps in which it rises from 0."""
    warmup_ratio: Share | None = None
    """Share of the steps; 0.03 where neither this nor `warmup_steps` is given."""
    optimizer: Literal["adamw_torch", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "sgd"] | None = None
    """By default AdamW; paged by bitsandbytes for qlora on a GPU."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of matrices; vectors, such as norms, do not decay."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's; so are the next two."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    adam_epsilon: Rate = 1e-8
    max_grad_norm: Rate = 1.0
    """Gradients are scaled down to this norm."""
    group_by_length: bool = False
    """Rows of like length together, where rows are padded."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Of all that is drawn."""

    logging_steps: Positive | None = None
    """Steps between two entries of the history; by default 10, or a tenth of a run that is shorter than 100."""
    saves_per_epoch: Positive | None = None
    """Checkpoints an epoch, instead of `save_steps`."""
    save_steps: Positive | None = None
    """Steps between two checkpoints; by default one an epoch."""
    save_total_limit: Positive = 3
    """Checkpoints to keep, the best one beside them."""
    evals_per_epoch: Positive | None = None
    """Evaluations an epoch, instead of `eval_steps`."""
    eval_steps: Positive | None = None
    """Steps between two evaluations; by default one an epoch."""
    eval_samples: Annotated[int, Field(ge=0)] = 64
    """Examples that are answered and scored at each evaluation, chosen by task; 0: the loss alone."""
    metric_for_best_model: str = "score"
    """Picks the best checkpoint: score (the mean of each task's own metric), loss, or a metric by its name."""
    early_stopping_patience: Positive | None = None
    """Evaluations without a better one before the run ends."""
    resume_from_checkpoint: bool | Name = False
    """true: from the last whole checkpoint, if there is one; or a folder."""
    use_tensorboard: bool = True
    """Writes TensorBoard's files into the run's folder."""
    wandb_project: str | None = None
    """Reports to Weights & Biases, where it is installed."""
    mlflow_experiment_name: str | None = None
    """Reports to MLflow, where it is installed."""
    fsdp: tuple[Literal["full_shard", "auto_wrap", "offload", "shard_grad_op"], ...] = ()
    """Under accelerate: shards the model over the processes."""
    fsdp_config: dict[str, Any] = Field(default_factory=dict)
    """More of it, as Transformers names it."""
    deepspeed: Name | None = None
    """Under accelerate: a DeepSpeed configuration; relative to the YAML file that names it."""

    @property
    def four_bit(self) -> bool:
        """Whether the frozen weights are NF4."""
        return self.adapter == "qlora" if self.load_in_4bit is None else self.load_in_4bit

    @property
    def shares_rows(self) -> bool:
        """Whether several examples may stand in one row."""
        return self.adapter not in VIRTUAL

    @model_validator(mode="after")
    def _no_contradictions(self) -> "Config":
        for wrong, message in _contradictions(self):
            if wrong:
                raise ValueError(message)
        return self


def _contradictions(c: Config) -> list[tuple[bool, str]]:
    given = c.model_fields_set
    virtual = c.adapter in VIRTUAL
    return [
        (c.adapter == "qlora" and c.load_in_4bit is False, "adapter 'qlora' is 4-bit: drop load_in_4bit, or use lora"),
        (c.four_bit and c.adapter in ("full", "delta-lora", "relora"),
         f"adapter '{c.adapter}' changes the weights themselves, which 4 bits cannot: drop load_in_4bit or use qlora"),
        (c.qat is not None and c.four_bit, "qat rounds to another grid than load_in_4bit: keep one of them"),
        (c.qat is not None and c.adapter not in ("full", "lora", "rslora", "lora+", "lora-fa"),
         f"qat needs weights that are rounded after the update is added: use adapter full or lora, not {c.adapter}"),
        (c.qat is not None and c.lora_dropout > 0,
         "qat rounds the update together with the weights, before which nothing can be dropped: remove lora_dropout"),
        (virtual and c.sample_packing, f"adapter '{c.adapter}' puts virtual tokens before every row: "
         "remove sample_packing"),
        (virtual and "share_prefixes" in given and c.share_prefixes,
         f"adapter '{c.adapter}' puts virtual tokens before every row: remove share_prefixes"),
        (c.flash_attention and "share_prefixes" in given and c.share_prefixes,
         "flash_attention knows no shared prefixes: remove one of flash_attention and share_prefixes"),
        (c.train_on_inputs and "share_prefixes" in given and c.share_prefixes,
         "train_on_inputs needs every prompt in its own row: remove share_prefixes"),
        (c.warmup_steps is not None and c.warmup_ratio is not None, "warmup_steps and warmup_ratio: give one"),
        (c.saves_per_epoch is not None and c.save_steps is not None, "saves_per_epoch and save_steps: give one"),
        (c.evals_per_epoch is not None and c.eval_steps is not None, "evals_per_epoch and eval_steps: give one"),
        (bool(c.mixture) and not any(c.mixture.values()), "mixture: every weight is 0: raise one"),
        (c.lora_target_modules is not None and "lora_target_linear" in given and c.lora_target_linear,
         "lora_target_linear means all layers: remove it, or lora_target_modules"),
        (bool(c.fsdp) and c.deepspeed is not None, "fsdp and deepspeed both shard the model: give one of them"),
        (c.nf4_storage != "auto" and not c.four_bit, "nf4_storage needs load_in_4bit: true, or adapter: qlora"),
        (c.relora_steps is not None and c.adapter != "relora", f"relora_steps needs adapter: relora, not {c.adapter}"),
    ]  # fmt: skip


def read_config(file: Path | None, settings: Sequence[str] = ()) -> Config:
    """The configuration in a YAML file, if there is one, changed by `key=value` pairs whose values are YAML, too.

    A key of a part is written with a dot: `fsdp_config.reshard=true`. Paths of data in the file count from the file's
    folder, those of `settings` from the current one.

    Raises:
        ConfigInvalid: the file cannot be read, a key is unknown or a value out of range, or two contradict each other.
    """
    values = _anchored(_loaded(file), file.parent) if file else {}
    over = frozenset(re.split(r"[.=]", setting)[0].strip() for setting in settings)
    return checked(_set(values, settings), str(file or "--set"), over)


def checked(values: Mapping[str, Any], where: str, over: frozenset[str] = frozenset()) -> Config:
    """Values as a configuration.

    Raises:
        ConfigInvalid: as `read_config`; the message begins with `where`, or with --set for the keys in `over`.
    """
    try:
        return Config.model_validate(dict(values))
    except ValidationError as error:
        place = error.errors()[0]["loc"]
        raise ConfigInvalid(f"{'--set' if place and place[0] in over else where}: {_said(error)}") from error


def _yaml(text: str) -> Any:
    """What a YAML text says.

    Raises:
        ValueError: it is none, a key stands in it twice, or a value is not what its kind asks for.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Of a key that stands there twice, YAML takes the last; a person may have meant the first."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [str(key.value) for key, _ in node.value]
            if twice := next((key for key in keys if keys.count(key) > 1), None):
                raise ValueError(f"the key {twice} stands there twice")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError, LookupError, TypeError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())[:300]) from error


def _loaded(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigInvalid(f"'{file}' cannot be read ({why}): name a YAML file") from error
    try:
        values = _yaml(text)
    except ValueError as error:
        raise ConfigInvalid(f"'{file}' is no YAML: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigInvalid(f"'{file}' holds no settings: write 'key: value' lines, such as adapter: lora")
    return {key: value for key, value in values.items() if value is not None}  # Axolotl's files leave keys empty


def _anchored(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """With paths of data that count from the file's folder."""
    for name in ("datasets", "test_datasets"):
        if isinstance(values.get(name), list):
            values[name] = [
                {**one, "path": str(folder / one["path"])} if isinstance(one, dict) and isinstance(one.get("path"), str)
                else one
                for one in values[name]
            ]  # fmt: skip
    if isinstance(values.get("deepspeed"), str):
        values["deepspeed"] = str(folder / values["deepspeed"])
    return values


def _set(values: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign or not key.strip():
            raise ConfigInvalid(f"--set {setting}: write key=value, such as learning_rate=1e-4")
        try:
            value = _yaml(text)
        except ValueError as error:
            raise ConfigInvalid(f"--set {setting[:100]}: the value is no YAML: {error}") from error
        *parts, last = key.strip().split(".")
        place = values
        for part in parts:
            inner = place.get(part)
            place[part] = place = dict(inner) if isinstance(inner, dict) else {}
        place[last] = _number(value)
    return values


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _said(error: ValidationError) -> str:
    """The first mistake in one line; of an unknown key, the nearest name."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        known = list(Data.model_fields if path[0] in ("datasets", "test_datasets") else Config.model_fields)
        near = [ALSO[path[-1]]] if path[-1] in ALSO else difflib.get_close_matches(path[-1], known, 1, 0.5)
        hint = f"did you mean '{near[0]}'?" if near else "see docs/finetune.md for all keys"
        return f"unknown key '{'.'.join(path)}': {hint}"
    message = first["msg"].removeprefix("Value error, ")
    if not path:
        return message
    given = first.get("input")
    told = isinstance(given, bool) or not isinstance(given, str | int | float)
    shown = "" if told else f" (it is {str(given)[:60]!r})"
    near = difflib.get_close_matches(str(given), METHODS, 1, 0.5) if path == ["adapter"] else []
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"'{'.'.join(path)}': {message[0].lower()}{message[1:]}{shown}{hint}"
