"""What ran, and the fingerprint of a base model."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from finetune.config import checked
from finetune.training.machine import what_ran
from rag_app import fingerprint as module
from rag_app.engines.checkpoints import find
from rag_app.fingerprint import fingerprint
from rag_app.models import locate
from rag_app.prompt import PROMPT_VERSION


def test_what_ran_tells_of_everything(tmp_path: Path, small_base: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("{}\n")
    config = checked({"adapter": "dora", "datasets": [{"path": str(data)}]}, "test")
    ran = json.loads(json.dumps(what_ran(config, [data], find(str(small_base)))))
    assert ran["config"] == {"adapter": "dora", "datasets": [{"path": str(data)}]}
    assert ran["config_with_defaults"]["lora_r"] == 16
    assert checked(ran["config_with_defaults"], "again").model_dump() == config.model_dump()
    assert ran["data"] == {str(data): {"bytes": 3, "sha256": hashlib.sha256(b"{}\n").hexdigest()}}
    assert ran["base_model"]["name"] == small_base.name
    assert len(ran["base_model"]["fingerprint"]) == 16
    assert ran["prompt_version"] == PROMPT_VERSION
    assert all(ran["versions"].values())
    assert ran["machine"]["cores"] >= 1
    assert ran["machine"]["memory"] > 1 << 28
    assert ran["machine"]["processor"]


def test_the_commit_is_told_and_whether_files_differ(
    tmp_path: Path, small_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git() -> object:
        return what_ran(checked({}, "test"), [], find(str(small_base)))["git"]

    def run(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert git() is None
    run("init")
    assert git() is None  # no commit yet
    Path("a").write_text("a")
    run("add", "a")
    run("commit", "-m", "a")
    assert git() == {"commit": run("rev-parse", "HEAD"), "dirty": False}
    Path("a").write_text("b")
    assert git() == {"commit": run("rev-parse", "HEAD"), "dirty": True}
    monkeypatch.setenv("PATH", "")
    assert git() is None


def test_a_model_is_known_by_its_weights_whatever_it_is_called(tmp_path: Path) -> None:
    file = locate()
    renamed = tmp_path / "other.gguf"
    shutil.copy(file, renamed)
    own = fingerprint(find(None))
    assert fingerprint(find(str(renamed))) == own
    with renamed.open("r+b") as stream:
        stream.seek(-100, os.SEEK_END)
        stream.write(b"x")
    assert fingerprint(find(str(renamed))) != own


def test_of_large_files_a_sample_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCKS", 8)
    (tmp_path / "config.json").write_text("{}")
    rest = bytes(40 * module.BLOCK)
    for number in (1, 2):
        (tmp_path / f"model-{number}.safetensors").write_bytes(rest)
    found = fingerprint(find(str(tmp_path)))

    def after(file: str, data: bytes) -> str:
        (tmp_path / file).write_bytes(data)
        return fingerprint(find(str(tmp_path)))

    assert after("model-1.safetensors", b"x" + rest[1:]) != found
    assert after("model-1.safetensors", rest[:-1] + b"x") != found
    assert after("model-1.safetensors", rest + b"\0") != found
    assert after("model-1.safetensors", rest) == found
    assert after("training.bin", b"no weights") == found


def test_a_folder_without_weights_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="no weights"):
        fingerprint(find(str(tmp_path)))


def test_a_digest_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(os.environ["RAG_HOME"]).mkdir(parents=True)
    own = fingerprint(find(None))
    monkeypatch.setattr(module, "_blocks", lambda files: pytest.fail("it is read again"))
    assert fingerprint(find(None)) == own
