"""What the tests share: no network, no home of the user's, tiny fakes, and one small real index."""

import hashlib
import json
import os
import re
import runpy
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rag_app.decoding import Decoding
from rag_app.prompt import Message

ROOT = Path(__file__).parent.parent
if hasattr(os, "sched_setaffinity") and (worker := os.environ.get("PYTEST_XDIST_WORKER")):
    # A core for each process of `pytest -n`, before anything counts them: threads of llama.cpp and PyTorch spin while
    # they wait, so that two processes with a thread for each core take many times as long.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
NETBLOCK = str(Path(__file__).parent / "netblock")

# Child processes too: Python imports sitecustomize from there before anything else.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [NETBLOCK, os.environ.get("PYTHONPATH")]))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("PYTHONUNBUFFERED", None)  # which hides what is still to be written when a program ends
# A shell's background job ignores Ctrl-C, and so would every program that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Here by its path: Debian's Python has imported a sitecustomize of its own.
runpy.run_path(f"{NETBLOCK}/sitecustomize.py")


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test writes below its own folder and sees none of the user's settings."""
    for name in ("RAG_ENCODER", "RAG_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAG_HOME", str(tmp_path / "rag-home"))


@pytest.fixture
def nothing_bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no adapter came with the program."""
    from rag_app.adapters import registry

    monkeypatch.setattr(registry, "BUNDLED", tmp_path / "nothing-bundled")


class WordEncoder:
    """A deterministic encoder for tests: a bag of words, hashed into 64 dimensions. Counts what it encodes."""

    precision = "fp32"

    def __init__(self, name: str = "words", dimension: int = 64) -> None:
        self.identity: Any = SimpleNamespace(name=name, dimension=dimension)
        self.identity.as_dict = lambda: {"name": name, "dimension": dimension, "fingerprint": name}
        self.encoded: list[str] = []

    def tokenize(self, text: str) -> Sequence[tuple[int, int]]:
        return [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]

    def encode(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> Any:
        self.encoded += texts
        if progress:
            progress(len(texts))
        return np.stack([self._vector(text) for text in texts])

    def encode_query(self, query: str) -> Any:
        return self._vector(query)

    def _vector(self, text: str) -> Any:
        vector = np.full(self.identity.dimension, 1e-3, np.float32)
        for word in re.findall(r"\w+", text.lower()):
            vector[int(hashlib.md5(word.encode()).hexdigest(), 16) % self.identity.dimension] += 1
        return vector / np.linalg.norm(vector)


class ScriptedModel:
    """Replays replies, one for each time that it is asked, the last one again and again; a token is a word.

    A reply is a list of pieces; an exception among them is raised.
    """

    engine = "scripted"
    abilities: frozenset[str] = frozenset()

    def __init__(self, *pieces: "str | Exception", window: int = 1000, max_tokens: int = 16) -> None:
        self.replies: list[Sequence[str | Exception]] = [pieces]
        self.decoding = Decoding(max_tokens=max_tokens)
        self.prompts: list[list[Message]] = []
        self.settings: list[dict[str, Any]] = []
        self.closed = 0
        self.read = 0
        self._window = window

    @classmethod
    def saying(cls, *replies: str, **settings: Any) -> "ScriptedModel":
        model = cls(**settings)
        model.replies = [re.findall(r"\s*\S+\s*$|\s*\S+", reply) for reply in replies]
        return model

    def check(self) -> str:
        return "scripted.gguf"

    def start(self) -> None:
        return None

    kill = close = start

    def window(self) -> int:
        return self._window

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return sum(len(message.content.split()) for message in messages)

    def stream(self, input: Any, config: Any = None, *, stop: Any = None, **kwargs: Any) -> Iterator[Any]:
        from langchain_core.messages import AIMessageChunk

        self.prompts.append([Message(role, content) for role, content in input])
        self.settings.append({**kwargs, **({"stop": stop} if stop else {})})
        pieces = self.replies[min(len(self.prompts), len(self.replies)) - 1]
        prompt = self.count_tokens(self.prompts[-1])
        try:
            yield AIMessageChunk("", usage_metadata=counted(prompt, 0))
            yield AIMessageChunk("", usage_metadata=counted(0, 0))
            for number, piece in enumerate(pieces):
                if isinstance(piece, Exception):
                    raise piece
                if number == kwargs.get("max_tokens", self.decoding.max_tokens):
                    yield AIMessageChunk("", response_metadata={"finish_reason": "length"})
                    return
                self.read += 1
                yield AIMessageChunk(piece, usage_metadata=counted(0, 1))
            yield AIMessageChunk("", response_metadata={"finish_reason": "stop"}, usage_metadata=counted(0, 0))
        finally:
            self.closed += 1


def counted(prompt: int, written: int) -> Any:
    return {"input_tokens": prompt, "output_tokens": written, "total_tokens": prompt + written}


@pytest.fixture
def encoder() -> WordEncoder:
    return WordEncoder()


@pytest.fixture(scope="session")
def real_encoder() -> Any:
    from index.encoder import SentenceEncoder

    return SentenceEncoder()


@pytest.fixture(scope="session")
def real_model() -> Iterator[Any]:
    from rag_app.decoding import Decoding
    from rag_app.engines.llama import LlamaCpp

    model = LlamaCpp(decoding=Decoding(max_tokens=48))
    yield model
    model.close()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as a folder of Transformers, bf16, made once for all processes. Not to be written to."""
    from filelock import FileLock

    from rag_app.engines import checkpoints

    shared = tmp_path_factory.getbasetemp()
    shared = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "base-models"
    shared.mkdir(exist_ok=True)
    with FileLock(shared / "lock"):
        if not (shared / "whole").is_dir():
            checkpoints._convert(checkpoints.find(None), shared / "whole")
        if not (shared / "small").is_dir():
            _cut(shared / "whole", shared / "small.part")
            (shared / "small.part").rename(shared / "small")
    return shared / "whole"


@pytest.fixture(scope="session")
def small_base(base: Path) -> Path:
    """`base` cut to its first two layers. Not to be written to."""
    return base.parent / "small"


def _cut(folder: Path, to: Path, layers: int = 2) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = layers
    model.save_pretrained(to)
    AutoTokenizer.from_pretrained(folder).save_pretrained(to)


FACTS = {
    "animals.md": "# Animals\n\n## Okapi\n\n"
    "The okapi lives in the Ituri rainforest. Its tongue is 45 centimetres long.\n\n## Axolotl\n\n"
    "The axolotl keeps its gills for life. It lives in Lake Xochimilco near Mexico City.\n",
    "lunch.txt": "Team lunch policy\n\nThe lunch allowance is 14 euros a day. Requests above it need a manager.\n",
    "engine.html": "<html><head><title>Engine manual</title></head><body><nav>Home</nav><h1>Engine</h1>"
    "<h2>Oil</h2><p>Change the oil every 7500 kilometres.</p></body></html>",
}


@pytest.fixture(scope="session")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three small documents."""
    folder = tmp_path_factory.mktemp("facts")
    for name, text in FACTS.items():
        (folder / name).write_text(text, "utf-8")
    return folder


@pytest.fixture(scope="session")
def real_index(facts: Path, real_encoder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of `facts` by the bundled encoder. Not to be written to: copy it with `copy_of`."""
    from index import build

    directory = tmp_path_factory.mktemp("real") / "index"
    build([facts], directory, encoder=real_encoder)
    return directory


def copy_of(directory: Path, to: Path) -> Path:
    return Path(shutil.copytree(directory, to))


def point(directory: Path) -> None:
    """Makes the pointer vouch for the manifest as it is now."""
    name = (directory / "CURRENT").read_text().split()[0]
    digest = hashlib.sha256((directory / name / "manifest.json").read_bytes()).hexdigest()
    (directory / "CURRENT").write_text(f"{name} {digest}\n")


def sign(directory: Path) -> None:
    """Makes manifest and pointer vouch for the current generation as it is now, however wrong that is."""
    generation = directory / (directory / "CURRENT").read_text().split()[0]
    manifest = json.loads((generation / "manifest.json").read_text())
    for name, part in manifest["parts"].items():
        data = (generation / name).read_bytes()
        part["bytes"], part["sha256"] = len(data), hashlib.sha256(data).hexdigest()
        part["head"] = hashlib.sha256(data[: 1 << 16]).hexdigest()
    (generation / "manifest.json").write_text(json.dumps(manifest))
    point(directory)
