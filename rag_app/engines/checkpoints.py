"""Loads a model for Transformers: a folder, a Hub id or a GGUF file, in 16 bits or NF4. Knows nothing of replies."""

import errno
import gc
import hashlib
import logging
import os
import shutil
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from index.errors import RagError
from index.paths import expanded, home
from index.precision import cores, guessed, patient_threads
from rag_app.engines.outside import one_line
from rag_app.errors import ModelInvalid, ModelNotFound, SettingInvalid
from rag_app.models import locate

if TYPE_CHECKING:
    import torch

REMEDY = "give another with --model, or leave it out for the bundled one"
PATIENCE = 10.0
"""Seconds for the Hub to answer in."""
EXTRAS = {
    "gptq": (("gptqmodel", "optimum"), "pip install 'rag-app[gptq]'"),
    "bitsandbytes": (("bitsandbytes",), "pip install bitsandbytes"),
}
"""How a checkpoint may be quantised, the packages that it needs then, and the command that brings them."""
DIGITS_APART = frozenset({"codeshell", "command-r", "exaone", "minerva-7b", "refact", "smollm", "starcoder"})
"""What a GGUF file calls the splits that take each digit for itself before anything else. Transformers leaves that out,
and would read a number at the start of a line otherwise than llama.cpp does."""


@dataclass(frozen=True)
class Source:
    """Where a model is."""

    name: str
    where: str
    """A folder or a Hub id."""
    gguf: str | None = None
    """The file in the folder, where it is one."""
    cached: bool = False
    """Whether the Hub is not to be asked for what is here already."""

    @property
    def files(self) -> dict[str, Any]:
        """As `from_pretrained` takes it."""
        more: dict[str, Any] = {"gguf_file": self.gguf} if self.gguf else {}
        return {
            "pretrained_model_name_or_path": self.where,
            **more,
            **({"local_files_only": True} if self.cached else {}),
        }

    @property
    def on_the_hub(self) -> bool:
        """Whether it is a Hub id."""
        return not self.gguf and not Path(self.where).is_dir()


def find(path: str | None) -> Source:
    """The model to load: the argument, else `$RAG_MODEL`, else the bundled GGUF file. Loads nothing.

    Raises:
        ModelNotFound: there is no such file or folder, or the Hub may not be asked for what is not here.
        ModelInvalid: the file is no GGUF, the folder no model's.
    """
    wanted = path or os.environ.get("RAG_MODEL") or ""
    place = expanded(wanted)
    if wanted and place.is_dir():
        if not (place / "config.json").is_file():
            raise ModelInvalid(
                f"the folder '{place}' holds no config.json, so it is no model of Transformers: {REMEDY}"
            )
        return Source(place.resolve().name, str(place.resolve()))
    if wanted and not place.exists() and not wanted.startswith((".", "/", "~")) and wanted.count("/") == 1:
        return _on_the_hub(wanted)
    file = locate(wanted or None)
    return Source(file.name, str(file.resolve().parent), file.name)


def load(source: Source, precision: str, device: str, double: bool = False) -> tuple[Any, Any]:
    """The model, ready for use, and its tokenizer.

    Args:
        source: from `find`.
        precision: 'auto', '16-bit' or 'nf4'.
        device: 'auto', or as PyTorch names it.
        double: NF4 with its scales quantised, too, as QLoRA trains.

    Raises:
        ModelNotFound: the Hub has no such model, or cannot be reached.
        ModelInvalid: the files are damaged, incomplete or of an unknown kind; or there is too little memory.
        SettingInvalid: there is no such device, or the files have another precision.
    """
    patient_threads()
    with _explained(source), quiet():
        import torch
        import transformers

        torch.set_num_threads(cores())
        place = chosen_device(device)
        source = _converted(source) if source.gguf else _reached(source) if source.on_the_hub else source
        config = transformers.AutoConfig.from_pretrained(**source.files)
        held: Any = getattr(config, "quantization_config", None)
        nf4 = _quantise(source, held, precision)
        whole_rows = isinstance(held, dict) and held["quant_method"] == "gptq" and held.get("group_size") == -1
        if whole_rows and place.type == "cpu":
            held["backend"] = "gptq_torch"  # gptqmodel would take a kernel of 4 bits that knows no groups so large
        tokenizer = transformers.AutoTokenizer.from_pretrained(**source.files)
        model = _weights(source, {"config": config, **_settings(place, nf4, device == "auto", double)})
        if place.type == "cpu":
            _unpack_once(model)
        return model, tokenizer


def settled(source: Source) -> Source:
    """Where its files are to be read from: a GGUF file is converted into a folder, the Hub asked whether it answers.

    Raises:
        ModelNotFound: the Hub has no such model, or cannot be reached.
        ModelInvalid: the file cannot be converted.
    """
    with _explained(source), quiet():
        return _converted(source) if source.gguf else _reached(source) if source.on_the_hub else source


def tokenizer(source: Source) -> Any:
    """The tokenizer alone, of a source that is `settled`.

    Raises:
        ModelInvalid: its files are damaged or incomplete.
    """
    with _explained(source), quiet():
        import transformers

        return transformers.AutoTokenizer.from_pretrained(**source.files)


def lacking(kind: str) -> tuple[str, str] | None:
    """A package that models quantised by 'gptq' or 'bitsandbytes' need and that is not here; how to install it."""
    packages, command = EXTRAS.get(kind, ((), ""))
    return next(((package, command) for package in packages if not find_spec(package)), None)


def chosen_device(wanted: str) -> "torch.device":
    """The device that a name stands for.

    Raises:
        SettingInvalid: there is none.
    """
    import torch

    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device).item()  # which the meta device, whose tensors are empty, refuses
    except Exception as error:  # each backend has its own way to say so
        raise SettingInvalid(
            f"the device '{wanted}' cannot be used ({one_line(error, 100)}): give cpu, or leave it out"
        ) from error
    return device


def dtype(device: "torch.device") -> "torch.dtype":
    """What 16 bits mean: bf16 where the hardware has it, else fp16 on a GPU, and fp32 on a CPU, where both are slow."""
    import torch

    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu":
        return torch.bfloat16 if guessed() == "bf16" else torch.float32
    return torch.bfloat16


def _converted(source: Source) -> Source:
    """A GGUF file as a folder of 16-bit weights below the home folder, made once.

    Transformers takes 17 s of processor time to read the bundled file, and 2 s to read the folder (257 MB).
    """
    assert source.gguf
    file = Path(source.where) / source.gguf
    found = file.stat()
    mark = hashlib.sha256(f"{file} {found.st_size} {found.st_mtime_ns} 2".encode()).hexdigest()[:12]
    folder = home() / "models" / f"{file.stem}-{mark}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                _convert(source, folder)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise ModelInvalid(
            f"the model '{source.name}' cannot be converted into '{folder}' ({error.strerror}): make room there, or "
            "set $RAG_HOME to another folder"
        ) from error
    return Source(source.name, str(folder.resolve()))


def _convert(source: Source, folder: Path) -> None:
    import torch
    import transformers

    part = folder.parent / f"{folder.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    config = transformers.AutoConfig.from_pretrained(**source.files)
    model = _weights(source, {"config": config, "dtype": torch.bfloat16})
    model.hf_quantizer = None  # as it says of itself that it is quantised, it would not be saved
    del model.config.quantization_config
    model.save_pretrained(part)
    _tokenizer(source).save_pretrained(part)
    for path in part.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    part.replace(folder)


def _tokenizer(source: Source) -> Any:
    """Of a GGUF file."""
    import transformers
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import Digits, Sequence

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(**source.files)
    split = GGUFReader(Path(source.where, source.gguf or "")).get_field("tokenizer.ggml.pre")
    if split and split.contents() in DIGITS_APART:
        inner = tokenizer.backend_tokenizer
        inner.pre_tokenizer = Sequence([Digits(individual_digits=True), inner.pre_tokenizer])
    return tokenizer


def _on_the_hub(name: str) -> Source:
    from huggingface_hub import constants, try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(name, "config.json"), str) and constants.HF_HUB_OFFLINE:
        raise ModelNotFound(
            f"the model '{name}' is no folder here, and the Hub may not be asked (HF_HUB_OFFLINE is set): fetch it "
            f"with 'hf download {name}' where you are online, or {REMEDY}"
        )
    return Source(name, name)


def _reached(source: Source) -> Source:
    """Asks the Hub once, since the libraries ask six times; where it does not answer, what is here has to do.

    Raises:
        ModelNotFound: it does not answer, or has no such model, and nothing of it is here.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    try:
        get_hf_file_metadata(hf_hub_url(source.where, "config.json"), timeout=PATIENCE)
    except Exception as error:  # of the system, of two libraries
        if isinstance(try_to_load_from_cache(source.where, "config.json"), str):
            return replace(source, cached=True)
        raise _not_had(source, error) from error
    return source


def _not_had(source: Source, error: Exception) -> ModelNotFound:
    text = f"{type(error).__name__}: {one_line(error)}"
    return ModelNotFound(
        f"the model '{source.name}' cannot be had from the Hub ({text}): check its name and the connection, or {REMEDY}"
    )


def _quantise(source: Source, held: Any, precision: str) -> bool:
    """Whether the weights are to be made NF4."""
    if held is not None:
        kind = str(held["quant_method"] if isinstance(held, dict) else held.quant_method.value)
        if missing := lacking(kind):
            raise ModelInvalid(
                f"the model '{source.name}' is quantised by {kind}, which needs {missing[0]}: run {missing[1]}"
            )
        if precision == "16-bit" or (precision == "nf4" and kind != "bitsandbytes"):
            raise SettingInvalid(f"the model '{source.name}' is quantised by {kind} already: leave --precision out")
        return False
    if precision == "nf4" and not find_spec("bitsandbytes"):
        raise SettingInvalid("--precision nf4 needs bitsandbytes: run pip install bitsandbytes")
    return precision == "nf4"


def _settings(device: "torch.device", nf4: bool, anywhere: bool, double: bool) -> dict[str, Any]:
    """What `from_pretrained` is told."""
    import torch
    import transformers

    hf: Any = transformers
    kind = dtype(device)
    settings: dict[str, Any] = {"dtype": kind, "device_map": {"": device}}
    if anywhere and torch.cuda.device_count() > 1:
        settings["device_map"] = "auto"
    if nf4:
        settings["quantization_config"] = hf.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=kind,
            bnb_4bit_use_double_quant=double,
        )
    if device.type == "cuda" and find_spec("flash_attn"):
        settings["attn_implementation"] = "flash_attention_2"
    return settings


def _weights(source: Source, settings: dict[str, Any]) -> Any:
    import transformers

    loader: Any = transformers.AutoModelForCausalLM
    settings = {**source.files, **settings, "output_loading_info": True}
    if source.cached:
        settings["adapter_kwargs"] = {"local_files_only": True}  # or the Hub is asked for one, for 20 s
    try:
        model, report = loader.from_pretrained(**settings)
    except (ImportError, ValueError):
        if not settings.pop("attn_implementation", None):
            raise
        model, report = loader.from_pretrained(**settings)
    if report["missing_keys"] or report.get("mismatched_keys"):
        lacking = sorted(map(str, [*report["missing_keys"], *report.get("mismatched_keys", ())]))
        raise ModelInvalid(
            f"the model '{source.name}' lacks {len(lacking)} of its weights, {lacking[0]} for one: fetch it again, or "
            + REMEDY
        )
    return model.eval()


def _unpack_once(model: Any) -> None:
    """Has layers of GPTQ that no kernel is for, as in 8 bits, keep their weights as 16 bits once they have read them.

    They would unpack them at every token, and for that compile C++ at the first one, which takes half a minute.
    """
    for layer in model.modules():
        if hasattr(layer, "enable_weight_cache"):
            vars(layer).pop("dequantize_weight", None)  # the compiled one stands before that of the class
            layer.enable_weight_cache()


@contextmanager
def _explained(source: Source) -> Iterator[None]:
    """Whatever the libraries raise, as one line."""
    try:
        yield
    except RagError:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {one_line(error)}"
        if "memory" in text.lower() or isinstance(error, MemoryError):
            raise ModelInvalid(
                f"there is too little memory for the model '{source.name}' ({text}): give a smaller one, or "
                "--precision nf4"
            ) from error
        if isinstance(error, OSError) and source.on_the_hub:
            raise _not_had(source, error) from error
        raise ModelInvalid(
            f"the model '{source.name}' cannot be loaded ({text}): it is damaged, incomplete or of an unknown kind. "
            f"Fetch it again, or {REMEDY}"
        ) from error


_QUIET = threading.Lock()
_NOWHERE = Path(os.devnull).open("w")  # noqa: SIM115  (for as long as the process lives)


@contextmanager
def quiet() -> Iterator[None]:
    """Without progress bars and advice on stderr."""
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging as log_of_transformers

    gguf: Any = modeling_gguf_pytorch_utils
    log: Any = log_of_transformers
    log.set_verbosity_error()
    log.disable_progress_bar()
    for library in ("huggingface_hub", "bitsandbytes"):  # retries, and a kernel that it would like to have
        logging.getLogger(library).setLevel(logging.ERROR)
    with _QUIET:
        if find_spec("logbar"):
            _hush_gptqmodel()
        bar, gguf.tqdm = gguf.tqdm, lambda items, **_: items  # it has one that no setting reaches
        try:
            yield
        finally:
            gguf.tqdm = bar


def _hush_gptqmodel() -> None:
    """It tells of itself on stdout, where answers belong, once Transformers or PEFT import it, on whatever occasion."""
    for library in ("torchao", "torch.utils._pytree"):  # GPUs that are not here, and what will change in PyTorch
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
    if "logbar" not in sys.modules:
        with redirect_stdout(sys.stderr):  # for 60 ms: an empty line, and nothing that another thread writes is lost
            import_module("logbar")
    log: Any = import_module("logbar.logbar")
    log._stdout_stream = lambda: _NOWHERE


def tidy() -> None:
    """Gives the GPU's memory back that no model uses any more."""
    if torch := sys.modules.get("torch"):
        gc.collect()
        torch.cuda.empty_cache()
