"""Checkpoint folders: whole or absent whatever ends the run that writes them."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune.training import checkpoints
from index import folders
from tests.conftest import ROOT

CHILD = """
import os, sys
from pathlib import Path
from finetune.training import checkpoints
from index import folders

def instant(event, arguments):
    # Every file that is opened, folder that is made or renamed is an instant to be killed at.
    if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
        os.write(1, b".")
        os.read(0, 1)

out, value = Path(sys.argv[1]), sys.argv[2]
sys.addaudithook(instant)
with folders.staged(out / "checkpoint-40", step=40) as folder:
    (folder / "weights.bin").write_text(value * 70_000)
    (folder / "inner").mkdir()
    (folder / "inner" / "state.json").write_text(value)
checkpoints.prune(out, 1, None)
os.write(1, b"!")
"""


def save(output_dir: Path, step: int, text: str = "x") -> Path:
    with folders.staged(output_dir / f"checkpoint-{step}", step=step) as folder:
        (folder / "weights.bin").write_text(text * 100)
        (folder / "inner").mkdir()
        (folder / "inner" / "state.json").write_text("{}")
    return output_dir / f"checkpoint-{step}"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_saved_folder_is_whole_and_says_of_what_it_is_made(tmp_path: Path) -> None:
    folder = save(tmp_path / "out", 40)
    assert folders.whole(folder) == ""
    assert names(tmp_path / "out") == {"checkpoint-40"}
    content = json.loads((folder / "complete.json").read_text())
    assert content["step"] == 40
    assert content["files"]["weights.bin"][0] == 100
    assert set(content["files"]) == {"weights.bin", "inner/state.json"}
    assert checkpoints.latest(tmp_path / "out") == folder


def test_files_are_readable_as_others_of_this_user(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    assert save(tmp_path, 1).stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_error_leaves_nothing_and_the_old_one_untouched(tmp_path: Path) -> None:
    folder = save(tmp_path, 40, "old")
    for error in (ValueError("odd"), KeyboardInterrupt()):
        with pytest.raises(type(error)), folders.staged(folder) as part:
            (part / "weights.bin").write_text("half")
            raise error
        assert names(tmp_path) == {"checkpoint-40"}
        assert (folder / "weights.bin").read_text() == "old" * 100
        assert folders.whole(folder) == ""


def test_a_folder_is_replaced_through_a_link(tmp_path: Path) -> None:
    save(tmp_path / "big", 40, "old")
    (tmp_path / "out").symlink_to(tmp_path / "big" / "checkpoint-40")
    with folders.staged(tmp_path / "out") as part:
        (part / "weights.bin").write_text("new")
    assert (tmp_path / "big" / "checkpoint-40" / "weights.bin").read_text() == "new"
    assert names(tmp_path / "big") == {"checkpoint-40"}
    assert names(tmp_path) == {"big", "out"}


@pytest.mark.parametrize(
    ("harm", "phrase"),
    [
        (lambda at: os.truncate(at / "weights.bin", 12), "weights.bin is 12 of 100 bytes"),
        (lambda at: (at / "inner/state.json").unlink(), "inner/state.json is missing"),
        (lambda at: (at / "weights.bin").write_text("y" * 100), "weights.bin has changed since it was written"),
        (lambda at: (at / "complete.json").unlink(), "it is not finished (it has no complete.json)"),
        (lambda at: (at / "complete.json").write_text("{"), "complete.json cannot be read"),
        (lambda at: (at / "complete.json").write_text("[]"), "complete.json cannot be read"),
        (lambda at: (at / "complete.json").write_text('{"files": {"a": 1}}'), "complete.json cannot be read"),
        (lambda at: (at / "complete.json").write_bytes(b"\xff"), "complete.json cannot be read"),
        (shutil.rmtree, "there is no such folder"),
    ],
)
def test_what_is_wrong_is_said_and_passed_over(tmp_path: Path, harm: object, phrase: str) -> None:
    first, second = save(tmp_path, 20), save(tmp_path, 40)
    assert callable(harm)
    harm(second)
    assert folders.whole(second) == phrase
    told: list[str] = []
    assert checkpoints.latest(tmp_path, told.append) == first
    assert told == ([f"'{second}' is passed over: {phrase}"] if second.is_dir() else [])


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path / "none") is None
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert checkpoints.latest(tmp_path) is None


def test_the_newest_is_the_one_saved_last(tmp_path: Path) -> None:
    save(tmp_path, 100)
    save(tmp_path, 9)  # of a run that began again
    assert checkpoints.latest(tmp_path) == tmp_path / "checkpoint-9"


def test_prune_keeps_the_newest_the_best_and_what_is_not_ours(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        save(tmp_path, step)
    (tmp_path / "checkpoint-5").mkdir()
    checkpoints.prune(tmp_path, 2, tmp_path / "checkpoint-10")
    assert names(tmp_path) == {"checkpoint-5", "checkpoint-10", "checkpoint-30", "checkpoint-40"}


def test_a_cut_checkpoint_does_not_count_among_those_to_keep(tmp_path: Path) -> None:
    for step in (10, 20):
        save(tmp_path, step)
    os.truncate(tmp_path / "checkpoint-20" / "weights.bin", 1)
    checkpoints.prune(tmp_path, 1, None)
    assert checkpoints.latest(tmp_path) == tmp_path / "checkpoint-10"


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    with folders.staged(tmp_path / "checkpoint-1") as one:
        (one / "a").write_text("a")
        with folders.staged(tmp_path / "checkpoint-2") as two:
            (two / "b").write_text("b")
    assert names(tmp_path) == {"checkpoint-1", "checkpoint-2"}


@pytest.mark.slow
def test_killed_at_any_instant_a_whole_checkpoint_stays(tmp_path: Path) -> None:
    """Kills a process with SIGKILL before each thing that it does on the disk, from the first to the last."""
    base, seen, instants = tmp_path / "base", set(), 0
    save(base, 20, "old")
    save(base, 40, "old")
    while True:
        out = Path(shutil.copytree(base, tmp_path / f"out{instants}"))
        ended = _killed_at(out, instants)
        found = checkpoints.latest(out, lambda line: pytest.fail(line))
        assert found == out / "checkpoint-40"  # the old one or the new one, never the one before, never a half
        assert folders.whole(out / "checkpoint-20") in ("", "there is no such folder")
        seen.add((found / "weights.bin").read_text()[:3])
        save(out, 60)
        assert not any(name.startswith(".") for name in names(out))
        shutil.rmtree(out)
        if ended:
            break
        instants += 1
    assert seen == {"old", "new"}
    assert instants > 20


def _killed_at(out: Path, instant: int) -> bool:
    """Whether the process came to its end before that instant."""
    read, write = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(out), "new"], cwd=ROOT, stdin=subprocess.PIPE, stdout=write
    ) as child:
        os.close(write)
        assert child.stdin
        try:
            for _ in range(instant + 1):
                if os.read(read, 1) == b"!":
                    return True
                if _ == instant:
                    os.kill(child.pid, signal.SIGKILL)
                else:
                    child.stdin.write(b"+")
                    child.stdin.flush()
        finally:
            os.close(read)
            child.kill()
    return False


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_gives_its_own_error_and_leaves_the_last_checkpoint(small_disk: Path) -> None:
    import torch
    from safetensors.torch import save_file

    before, room = save(small_disk, 20), shutil.disk_usage(small_disk).free
    tensors = {"a": torch.zeros(1 << 19)}
    for write in (
        lambda at: save_file(tensors, at / "model.safetensors"),  # each library has an error of its own for this
        lambda at: torch.save(tensors, at / "optimizer.pt"),
        lambda at: (at / "state.json").write_text("x" * (2 << 20)),
        lambda at: (at / "state.json").write_text("x" * room),  # no room for what vouches for it
    ):
        with pytest.raises(OSError) as caught, folders.staged(small_disk / "checkpoint-40") as part:
            write(part)
        assert caught.value.errno == errno.ENOSPC
        assert names(small_disk) == {"checkpoint-20"}
        assert checkpoints.latest(small_disk) == before
