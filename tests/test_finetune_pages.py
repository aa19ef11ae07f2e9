"""Large pages for what a process has allocated."""

import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.training import pages

MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
COUNTED = """
from pathlib import Path
from finetune.training import pages

def large() -> int:
    text = Path("/proc/self/smaps_rollup").read_text()
    return int(text.split("AnonHugePages:")[1].split()[0]) * 1024

kept = bytearray(64 * 2**20)
kept[:] = bytes(range(256)) * (len(kept) // 256)
before = large()
pages.enlarge()
print(before, large(), kept == bytes(range(256)) * (len(kept) // 256))
"""


def without() -> bool:
    """Whether this system has none, or cannot move what is there already."""
    if not MODE.exists() or "[never]" in MODE.read_text("utf-8"):
        return True
    return tuple(map(int, re.findall(r"\d+", platform.release())[:2])) < (6, 1)


@pytest.mark.skipif(without(), reason="a system that moves nothing into large pages")
def test_what_is_allocated_already_is_moved_into_large_pages_unharmed() -> None:
    done = subprocess.run([sys.executable, "-c", COUNTED], capture_output=True, text=True, check=True)
    before, after, unharmed = done.stdout.split()
    assert int(after) - int(before) >= 32 * 2**20 or int(before) >= 32 * 2**20
    assert unharmed == "True"


def test_another_system_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("ctypes.CDLL", asked.append)
    pages.enlarge()
    assert not asked
