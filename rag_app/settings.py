"""Settings of a program or a conversation: a TOML file, then the command line. Unknown names are refused.

# .rag/config.toml
[generator]
engine = "server"
base_url = "http://localhost:8000/v1"
model = "Qwen/Qwen3-8B"

[decoding]
temperature = 0.7

[answer]
strategy = "react"
"""

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from index.paths import home
from rag_app.adapters.state import parsed
from rag_app.decoding import Decoding, shown
from rag_app.errors import AdapterInvalid, SettingInvalid

if TYPE_CHECKING:
    from rag_app.generator import Generator

Strategy = Literal["zero-shot", "few-shot", "cot", "react", "pal"]
Engine = Literal["llama.cpp", "transformers", "server", "langchain"]
Precision = Literal["auto", "16-bit", "nf4"]
Rewrite = Literal["auto", "model", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a question is answered; each conversation may have its own."""

    strategy: Strategy = "zero-shot"
    """What the model is asked to do: answer, follow examples, reason first, use tools in turns, write a program."""
    k: int = 4
    """Passages that the model reads."""
    shots: int = 3
    """Examples shown by few-shot."""
    examples: str | None = None
    """JSONL file of examples; the bundled ones by default."""
    max_steps: int = 6
    """Most steps of react and pal."""
    budget: int = 1024
    """Most tokens that the model may write for one question, over all steps."""
    quotes: bool = True
    """Whether text between quote marks must stand verbatim in a passage."""
    rewrite: Rewrite = "auto"
    """How a follow-up becomes a question that stands alone: from the words of the conversation, by the model, not."""
    min_confidence: float | None = None
    """Confidence of retrieval below which the answer is refused; the index's calibration by default."""
    adapter: str | None = None
    """Adapters instead of those in use: NAME, or several as NAME,OTHER:0.5 with weights, or off for none."""
    tools: tuple[str, ...] = ()
    """Tools of one's own for react, each as module:name of a LangChain tool or a function."""

    def __post_init__(self) -> None:
        for name, low, high in (("k", 1, 1000), ("shots", 0, 100), ("max_steps", 1, 100), ("budget", 1, 10**6)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise SettingInvalid(f"{name} is {shown(value)}: give a whole number from {low} to {high:,}")
        least = self.min_confidence
        if least is not None and (isinstance(least, bool) or not isinstance(least, int | float) or not 0 <= least <= 1):
            raise SettingInvalid(f"min_confidence is {shown(least)}: give a number from 0 to 1")
        if not isinstance(self.quotes, bool):
            raise SettingInvalid(f"quotes is {shown(self.quotes)}: give True or False")
        if self.examples is not None and not (isinstance(self.examples, str) and self.examples.strip()):
            raise SettingInvalid(f"examples is {shown(self.examples)}: give the name of a JSONL file")
        if self.adapter is not None:
            if not isinstance(self.adapter, str):
                raise SettingInvalid(f"adapter is {shown(self.adapter)}: give the name of an adapter, or off")
            try:
                parsed(self.adapter)
            except AdapterInvalid as error:
                raise SettingInvalid(f"adapter is {shown(self.adapter)}: {error}") from error
        if not isinstance(self.tools, tuple) or not all(isinstance(tool, str) and tool for tool in self.tools):
            raise SettingInvalid(f"tools is {shown(self.tools)}: give a tuple of texts, each module:name")
        for name, choices in (("strategy", Strategy), ("rewrite", Rewrite)):
            if getattr(self, name) not in get_args(choices):
                raise SettingInvalid(_unknown(name, str(getattr(self, name)), get_args(choices)))

    def changed(self) -> dict[str, Any]:
        """The settings that differ from their defaults."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorSettings:
    """Which model runs where."""

    engine: Engine = "llama.cpp"
    """llama.cpp and transformers run here, server is asked over HTTP, langchain is any chat model of LangChain's."""
    model: str | None = None
    """llama.cpp: a GGUF file, by default $RAG_MODEL or the bundled one. transformers: a folder, Hub id or GGUF file.
    server: the name that it serves the model by. langchain: module:name of a chat model or of what makes one."""
    n_ctx: int = 4096
    """Context window in tokens; the model's own where that is smaller, a server's own where it tells it."""
    precision: Precision = "auto"
    """transformers: 16-bit, or NF4 by bitsandbytes; auto takes what the files hold."""
    device: str = "auto"
    """transformers: cpu, cuda, cuda:1; auto takes a GPU where there is one."""
    base_url: str = "http://localhost:8080/v1"
    """server: where its OpenAI-compatible interface is."""
    api_key_env: str = "OPENAI_API_KEY"
    """server: the environment variable that holds its key, where it wants one."""
    timeout: float = 60.0
    """server: seconds without a word from it that count as failure."""
    retries: int = 3
    """server: how often a request that failed for a passing reason is sent again."""

    def __post_init__(self) -> None:
        for name, choices in (("engine", Engine), ("precision", Precision)):
            if getattr(self, name) not in get_args(choices):
                raise SettingInvalid(_unknown(name, str(getattr(self, name)), get_args(choices)))
        for name, low, high in (("n_ctx", 64, 10**7), ("timeout", 0.01, 10**6), ("retries", 0, 100)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise SettingInvalid(f"{name} is {shown(value)}: give a number from {low} to {high:,}")
        for name in ("model", "device", "base_url", "api_key_env"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (name == "model" and value is None):
                raise SettingInvalid(f"{name} is {shown(value)}: give a text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be set."""

    generator: GeneratorSettings = field(default_factory=GeneratorSettings)
    """Which model runs where."""
    decoding: Decoding = field(default_factory=Decoding)
    """How the next token is chosen."""
    answer: Options = field(default_factory=Options)
    """How a question is answered."""


ONLY: dict[str, Engine] = {
    **dict.fromkeys(("precision", "device"), "transformers"),
    **dict.fromkeys(("base_url", "api_key_env", "timeout", "retries"), "server"),
}
"""Settings that one engine alone has."""
TABLES: dict[str, type[Any]] = {"generator": GeneratorSettings, "decoding": Decoding, "answer": Options}
Table = TypeVar("Table")


def load(path: str | Path | None = None, given: Mapping[str, Mapping[str, Any]] | None = None) -> Settings:
    """The settings of a file, with those of the command line over them.

    Args:
        path: a TOML file; `config.toml` in the home by default, where there is one.
        given: settings by table and name that take precedence.

    Raises:
        SettingInvalid: the file is missing or no TOML, or a table, name or value is not one of ours, or is a setting of
            another engine than the one that is chosen.
    """
    file = Path(path) if path else home() / "config.toml"
    stored = _read(file) if path or file.exists() else {}
    for table in stored:
        if table not in TABLES:
            for name, kind in TABLES.items():
                if table in get_type_hints(kind):
                    raise SettingInvalid(f"'{file}': {table} is a setting of [{name}]: write it below that line")
            raise SettingInvalid(f"'{file}': {_unknown('table', table, TABLES)}")
    made = {}
    for table, kind in TABLES.items():
        values = stored.get(table, {})
        if not isinstance(values, dict):
            raise SettingInvalid(f"'{file}': {table} is no table: write [{table}] above its settings")
        try:
            from_file = checked(kind, values)
        except SettingInvalid as error:
            raise SettingInvalid(f"'{file}': {error}") from error
        from_line = checked(kind, (given or {}).get(table, {}))
        if from_line.get("engine", own := from_file.get("engine", "llama.cpp")) != own:  # the file's is not used
            from_file = {name: value for name, value in from_file.items() if name not in ONLY or ONLY[name] != own}
        made[table] = kind(**{**from_file, **from_line})
    _check_fit(made["generator"])
    return Settings(**made)


def _check_fit(chosen: GeneratorSettings) -> None:
    """Refuses what the engine would have to ignore."""
    for f in fields(chosen):
        engine = ONLY.get(f.name, chosen.engine)
        if engine != chosen.engine and getattr(chosen, f.name) != f.default:
            raise SettingInvalid(
                f"{f.name} is a setting of the engine {engine}: leave it out, or choose that instead of {chosen.engine}"
            )


def checked(kind: type[Table], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by name, of the types that a table of settings wants.

    Raises:
        SettingInvalid: a name is unknown or a value of another type.
    """
    hints = get_type_hints(kind)
    result = {}
    for name, value in values.items():
        if name not in hints:
            raise SettingInvalid(_unknown("setting", name, hints))
        result[name] = _as(hints[name], name, value)
    kind(**result)  # ranges
    return result


def _as(hint: Any, name: str, value: Any) -> Any:
    allowed = get_args(hint) if get_origin(hint) is not Literal else (str,)
    kinds = allowed if allowed else (hint,)
    if get_origin(hint) is tuple:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            raise SettingInvalid(f'{name} is {shown(value)}: give a list of texts, such as ["…"]')
        return tuple(texts)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise SettingInvalid(f"{name} is {shown(value)}: give a smaller number") from error
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(sorted(getattr(k, "__name__", str(k)) for k in kinds if k is not type(None)))
        raise SettingInvalid(f"{name} is {shown(value)}: give a value of type {wanted}")
    return value


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8-sig"))
    except OSError as error:
        raise SettingInvalid(f"the settings '{file}' cannot be read ({error.strerror}): check the path") from error
    except RecursionError as error:
        raise SettingInvalid(f"the settings '{file}' are nested too deeply: write tables of plain values") from error
    except ValueError as error:  # no TOML, no UTF-8, or a number of too many digits
        raise SettingInvalid(f"the settings '{file}' are no TOML ({error}): mend that line") from error


def _unknown(what: str, given: str, known: Any) -> str:
    near = difflib.get_close_matches(given, list(known), 1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"there is no {what} '{given[:100]}': {hint}there are {', '.join(known)}"


def make_generator(settings: Settings) -> "Generator":
    """The engine that the settings name, not yet loaded.

    Raises:
        SettingInvalid: a setting is one that this engine lacks.
    """
    _check_fit(settings.generator)
    chosen, decoding = settings.generator, settings.decoding
    match chosen.engine:
        case "llama.cpp":
            from rag_app.engines.llama import LlamaCpp

            return LlamaCpp(path=chosen.model, n_ctx=chosen.n_ctx, decoding=decoding)
        case "transformers":
            from rag_app.engines.huggingface import TransformersChat

            return TransformersChat(
                path=chosen.model,
                n_ctx=chosen.n_ctx,
                precision=chosen.precision,
                device=chosen.device,
                decoding=decoding,
            )
        case "server":
            from rag_app.engines.server import ServerChat

            return ServerChat(
                model=chosen.model,
                base_url=chosen.base_url,
                api_key_env=chosen.api_key_env,
                n_ctx=chosen.n_ctx,
                timeout=chosen.timeout,
                retries=chosen.retries,
                decoding=decoding,
            )
        case "langchain":
            from rag_app.engines.langchain import LangChainChat

            return LangChainChat.named(chosen.model, n_ctx=chosen.n_ctx, decoding=decoding)
