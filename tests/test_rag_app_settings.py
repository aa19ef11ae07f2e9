"""Settings from a file and the command line: who wins, and one clear line for whatever is wrong."""

import ast
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rag_app import settings
from rag_app.decoding import Decoding
from rag_app.errors import SettingInvalid
from rag_app.settings import GeneratorSettings, Options, Settings, checked, load, make_generator
from tests.conftest import ROOT

EVERYTHING = """
[generator]
engine = "server"
model = "Qwen/Qwen3-8B"
base_url = "http://localhost:8000/v1"
timeout = 5

[decoding]
temperature = 1
stop = ["END", "\\n\\n"]

[answer]
strategy = "react"
quotes = false
min_confidence = 1
tools = "my_tools:weather"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


def wrong(file: Path, text: str | bytes, **given: Any) -> str:
    """The line that a file ends with."""
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(SettingInvalid) as caught:
        load(file, given)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 600
    return line


def test_nothing_set_is_everything_at_its_default() -> None:
    assert load() == Settings() == Settings(generator=GeneratorSettings(), decoding=Decoding(), answer=Options())


def test_a_file_sets_what_it_names(file: Path) -> None:
    file.write_text(EVERYTHING)
    read = load(file)
    assert read.generator == GeneratorSettings(
        engine="server", model="Qwen/Qwen3-8B", base_url="http://localhost:8000/v1", timeout=5.0
    )
    assert read.decoding == Decoding(temperature=1.0, stop=("END", "\n\n"))
    assert isinstance(read.decoding.temperature, float)
    assert read.answer == Options(strategy="react", quotes=False, min_confidence=1.0, tools=("my_tools:weather",))
    assert read.answer.changed() == {
        "strategy": "react",
        "quotes": False,
        "min_confidence": 1.0,
        "tools": ("my_tools:weather",),
    }


def test_the_file_in_the_home_is_read_unless_another_is_named(file: Path) -> None:
    home = Path(os.environ["RAG_HOME"])
    home.mkdir()
    (home / "config.toml").write_text("[answer]\nk = 7\n")
    file.write_text("[answer]\nshots = 1\n")
    assert load().answer == Options(k=7)
    assert load(file).answer == Options(shots=1)
    (home / "config.toml").write_text("[answer]\nq = 7\n")
    with pytest.raises(SettingInvalid, match=r"config\.toml': there is no setting 'q'"):
        load()


def test_the_command_line_goes_over_the_file(file: Path) -> None:
    file.write_text(EVERYTHING)
    read = load(file, {"decoding": {"temperature": 0, "stop": ["!"]}, "answer": {"k": 9}, "generator": {}})
    assert read.decoding == Decoding(stop=("!",))
    assert read.answer.k == 9
    assert read.answer.strategy == "react"
    assert read.generator.engine == "server"


def test_what_the_command_line_gets_wrong_is_not_blamed_on_the_file(file: Path) -> None:
    assert wrong(file, "", answer={"kk": 1}).startswith("there is no setting 'kk'")
    assert wrong(file, "", answer={"k": "many"}) == "k is 'many': give a value of type int"


@pytest.mark.parametrize("text", ["", "# nothing", "\ufeff[answer]\nk = 4\n", "[answer]\r\nk = 4\r\n"])
def test_empty_files_and_those_of_windows_are_fine(file: Path, text: str) -> None:
    file.write_bytes(text.encode())
    assert load(file) == Settings()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "[answers]\nk = 1",
            "there is no table 'answers': did you mean 'answer'? there are generator, decoding",
        ),
        ("k = 1", "k is a setting of [answer]: write it below that line"),
        ("j = 1", "there is no table 'j'"),
        ("[answer]\nstrateggy = 'react'", "there is no setting 'strateggy': did you mean 'strategy'?"),
        ("[decoding]\nqqqq = 1", "there is no setting 'qqqq': there are max_tokens, temperature"),
        ("[answer]\nstrategy = 'reakt'", "there is no strategy 'reakt': did you mean 'react'?"),
        ("[answer]\nrewrite = 'on'", "there is no rewrite 'on'"),
        ("[generator]\nengine = 'llama'", "did you mean 'llama.cpp'?"),
        ("[generator]\nengine = ''", "there is no engine ''"),
        ("[generator]\nprecision = '8-bit'", "did you mean '16-bit'?"),
        ("answer = 3", "answer is no table: write [answer]"),
        ("[[answer]]\nk = 3", "answer is no table"),
        ("[answer]\nk = '4'", "k is '4': give a value of type int"),
        ("[answer]\nk = 4.0", "k is 4.0: give a value of type int"),
        ("[answer]\nk = true", "k is True: give a value of type int"),
        ("[answer]\nk = 0", "k is 0: give a whole number from 1 to 1,000"),
        ("[answer]\nk = 2026-11-21", "give a value of type int"),
        ("[answer]\nquotes = 1", "quotes is 1: give a value of type bool"),
        ("[answer]\nexamples = 1", "examples is 1: give a value of type str"),
        ("[answer]\nmin_confidence = 1.5", "give a number from 0 to 1"),
        ("[answer]\nmin_confidence = nan", "give a number from 0 to 1"),
        ("[answer]\nmin_confidence = true", "give a value of type float"),
        ("[answer]\ntools = [1]", "give a list of texts"),
        ("[answer]\ntools = {a = 'b'}", "give a list of texts"),
        ("[answer]\nbudget = 0", "budget is 0"),
        ("[decoding]\ntemperature = -1", "temperature is -1"),
        ("[decoding]\ntemperature = nan", "temperature is nan"),
        ("[decoding]\nmax_tokens = inf", "max_tokens is inf"),
        ("[decoding]\nstop = ['']", "give texts that are not empty"),
        ("[decoding.top_k]\nx = 1", "top_k is {'x': 1}: give a value of type int"),
        ("[generator]\nn_ctx = 1", "n_ctx is 1: give a number from 64"),
        ("[generator]\ntimeout = 0", "timeout is 0.0"),
        ("[generator]\nretries = -1", "retries is -1"),
        ("[generator]\nmodel = 7", "model is 7: give a value of type str"),
        ("[answer\nk = 1", "are no TOML"),
        ("[answer]\nk = 1\nk = 2", "are no TOML"),
        (b"[answer]\n# Gr\xfc\xdfe\n", "are no TOML"),
        (b"\x00\x01\x02", "are no TOML"),
        ("[answer]\nk = " + "[" * 5000 + "]" * 5000, "are nested too deeply"),
        ("[answer]\nk = " + "9" * 5000, "are no TOML"),
        ("[answer]\nk = " + "9" * 4000, "99…: give a whole number"),
        ("[decoding]\ntemperature = " + "9" * 400, "99…: give a smaller number"),
        ("[answer]\nexamples = ''", "examples is '': give the name of a JSONL file"),
    ],
)
def test_a_wrong_file_is_told_by_one_line_that_names_it(file: Path, text: str | bytes, words: str) -> None:
    line = wrong(file, text)
    assert words in line
    assert str(file) in line


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingInvalid, match=r"'.*missing\.toml' cannot be read \(No such file or directory\)"):
        load(tmp_path / "missing.toml")
    with pytest.raises(SettingInvalid, match=r"cannot be read \(Is a directory\)"):
        load(tmp_path)


def test_options_made_in_code_are_checked_too() -> None:
    bad: dict[str, Any]
    for bad in (
        *({"k": 0}, {"k": True}, {"k": 10**5000}, {"shots": 1.5}, {"strategy": "none"}, {"quotes": "off"}),
        *({"min_confidence": -0.1}, {"min_confidence": "x"}, {"min_confidence": True}),
        *({"examples": 5}, {"examples": ""}, {"tools": [5]}, {"tools": "os.path:join"}, {"tools": ("",)}),
    ):
        with pytest.raises(SettingInvalid, match=next(iter(bad))):
            Options(**bad)
    with pytest.raises(SettingInvalid, match="timeout"):
        GeneratorSettings(timeout=float("nan"))


def test_checked_gives_only_what_was_named() -> None:
    assert checked(Decoding, {"top_k": 5, "min_p": 0}) == {"top_k": 5, "min_p": 0.0}
    assert checked(Options, {}) == {}


@pytest.mark.parametrize("table", [GeneratorSettings, Decoding, Options, Settings])
def test_every_setting_is_documented(table: type) -> None:
    body = ast.parse(inspect.getsource(table)).body[0].body  # type: ignore[attr-defined]
    for field, after in pairwise(body):
        if isinstance(field, ast.AnnAssign):
            assert isinstance(after, ast.Expr), f"{table.__name__}.{ast.unparse(field.target)}"


def test_what_the_command_line_chooses_leaves_the_settings_of_the_files_engine_aside(file: Path) -> None:
    file.write_text("[generator]\nengine = 'server'\nbase_url = 'http://h/v1'\nn_ctx = 512\n")
    assert load(file).generator.base_url == "http://h/v1"
    chosen = load(file, {"generator": {"engine": "llama.cpp"}}).generator
    assert (chosen.n_ctx, chosen.base_url) == (512, GeneratorSettings().base_url)
    with pytest.raises(SettingInvalid, match="precision is a setting of the engine transformers"):
        load(file, {"generator": {"precision": "nf4"}})
    with pytest.raises(SettingInvalid, match="retries is a setting of the engine server"):
        make_generator(Settings(generator=GeneratorSettings(retries=0)))
    file.write_text("[generator]\ndevice = 'cpu'\n")
    with pytest.raises(SettingInvalid, match=r"device is a setting of .* or choose that instead of llama.cpp"):
        load(file)
    assert load(file, {"generator": {"engine": "transformers"}}).generator.device == "cpu"


ENGINES: dict[str, dict[str, Any]] = {
    "llama.cpp": {},
    "transformers": {"model": "nowhere/to-be-found"},
    "server": {"model": "m", "base_url": "http://localhost:9/v1"},
    "langchain": {"model": "tests.test_rag_app_settings:fake"},
}


def fake() -> Any:
    from langchain_core.language_models.fake_chat_models import FakeListChatModel

    return FakeListChatModel(responses=["x"])


@pytest.fixture
def made() -> Iterator[list[Any]]:
    generators: list[Any] = []
    yield generators
    for generator in generators:
        generator.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_is_made_without_being_loaded(engine: Any, made: list[Any]) -> None:
    chosen = GeneratorSettings(engine=engine, n_ctx=777, **ENGINES[engine])
    made.append(make_generator(Settings(generator=chosen, decoding=Decoding(max_tokens=33))))
    assert made[0].engine == engine
    assert made[0].n_ctx == 777
    assert made[0].decoding == Decoding(max_tokens=33)


@pytest.mark.parametrize(
    ("engine", "setting"),
    [("llama.cpp", {"num_beams": 2}), ("server", {"penalty_alpha": 0.5}), ("langchain", {"temperature": 0.5})],
)
def test_an_engine_refuses_by_name_what_it_cannot_decode(engine: Any, setting: dict[str, Any]) -> None:
    chosen = GeneratorSettings(engine=engine, **ENGINES[engine])
    with pytest.raises(SettingInvalid, match=f"{engine}.*{next(iter(setting))}"):
        make_generator(Settings(generator=chosen, decoding=Decoding(**setting)))


def test_settings_are_read_and_engines_made_without_torch_or_a_client_of_openai() -> None:
    code = (
        "from rag_app.settings import *; import sys\nload()\nassert 'langchain_core' not in sys.modules\n"
        "make_generator(Settings(generator=GeneratorSettings(engine='server')))\n"
        "print({'torch', 'openai', 'llama_cpp', 'transformers', 'faiss'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_the_example_in_the_module_works(file: Path) -> None:
    assert settings.__doc__
    file.write_text(settings.__doc__.split("\n\n", 1)[1])
    assert load(file).generator.base_url == "http://localhost:8000/v1"
