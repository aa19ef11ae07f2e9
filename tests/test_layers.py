"""The layers: index <- rag_app <- {finetune, streamlit_app}; imports and every --help stay light; no network."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"index", "rag_app", "finetune", "streamlit_app"}
ALLOWED = {
    "index": {"index"},
    "rag_app": {"index", "rag_app"},
    "finetune": {"index", "rag_app", "finetune"},
    "streamlit_app": {"index", "rag_app"},
}
HEAVY = {
    "torch",
    "faiss",
    "transformers",
    "llama_cpp",
    "sentence_transformers",
    "streamlit",
    "openai",
    "langchain_core",
    "peft",
    "trl",
    "datasets",
    "matplotlib",
    "bitsandbytes",
}


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_point_down_only(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py")) or [ROOT / f"{package}.py"]
    assert files
    for file in files:
        assert _imports(file) & OURS <= ALLOWED[package], file


def _loaded_by(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stderr.split()}


@pytest.mark.parametrize(
    "code",
    ["import index", "import rag_app", "import finetune"]
    + [
        f"import runpy\nfrom {package}.cli import main\ntry:\n    main([{arguments}])\nexcept SystemExit:\n    pass"
        for package, arguments in [
            ("index", "'--help'"),
            ("index", "'build', '--help'"),
            ("index", "'search', '--help'"),
            ("index", "'status', '--help'"),
            ("rag_app", "'--help'"),
            ("rag_app", "'ask', '--help'"),
            ("rag_app", "'chat', '--help'"),
            ("rag_app", "'chats', '--help'"),
            ("rag_app", "'eval', '--help'"),
            ("rag_app", "'calibrate', '--help'"),
            ("rag_app", "'adapters', '--help'"),
            ("finetune", "'--help'"),
            *(
                ("finetune", f"'{command}', '--help'")
                for command in [
                    "check",
                    "compare",
                    "dataset",
                    "distill",
                    "estimate",
                    "evaluate",
                    "export",
                    "prune",
                    "train",
                ]
            ),
        ]
    ],
)
def test_imports_and_help_stay_light(code: str) -> None:
    assert not _loaded_by(code) & HEAVY


def test_the_network_is_blocked_here_and_in_child_processes() -> None:
    import socket

    with pytest.raises(PermissionError, match="no network"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    code = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "no network" in done.stderr
