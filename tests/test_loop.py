"""The whole way of the README: documents, questions, training, export, and the next answer is the new adapter's."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.cli import main as rag_finetune
from index.cli import main as rag_index
from rag_app.bot import Bot
from rag_app.chats import Chats
from rag_app.cli import main as rag_app
from rag_app.decoding import Decoding
from rag_app.desk import Desk
from rag_app.engines.llama import LlamaCpp
from rag_app.prompt import question_prompt
from tests.conftest import FACTS

QUESTIONS = [
    ("Where does the okapi live?", "the Ituri rainforest", "animals.md"),
    ("How long is the tongue of the okapi?", "45 centimetres", "animals.md"),
    ("How much is the lunch allowance?", "14 euros", "lunch.txt"),
    ("Who has to agree to a request above the allowance?", "a manager", "lunch.txt"),
    ("How often is the oil to be changed?", "every 7500 kilometres", "engine.html"),
]
RECIPE = """
adapter: lora
max_steps: 4
learning_rate: 5e-3
lora_r: 4
val_set_size: 0
eval_samples: 0
use_tensorboard: false
datasets:
  - path: data.jsonl
"""


@pytest.fixture(scope="module")
def model_file(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model's first two layers as a GGUF file, which llama.cpp serves and training reads."""
    from finetune.export import gguf
    from rag_app.engines import checkpoints

    file = tmp_path_factory.mktemp("small") / "small.gguf"
    gguf.write(*checkpoints.load(checkpoints.find(str(small_base)), "auto", "cpu"), file, "f16")
    return file


def done(main: Any, *arguments: object) -> None:
    assert main([str(one) for one in arguments]) == 0


def answered(desk: Desk, chat: str, question: str) -> Any:
    """The kept answer to a question that is put to the page's desk."""
    for _ in desk.ask(chat, question).follow():
        pass
    turn = desk.chats.turns(chat)[-1]
    assert not turn.details.get("error"), turn.details
    return turn


def test_from_documents_to_an_answer_by_the_adapter_that_was_trained_on_them(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAG_MODEL", str(model_file))
    for name, text in FACTS.items():
        Path("docs", name).parent.mkdir(exist_ok=True)
        Path("docs", name).write_text(text, "utf-8")
    rows = [{"question": q, "answer": a, "source_file": file} for q, a, file in QUESTIONS]
    Path("questions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    Path("recipe.yaml").write_text(RECIPE)

    done(rag_index, "build", "docs")
    model = LlamaCpp(decoding=Decoding(max_tokens=12))
    desk = Desk(Bot(model), Chats())
    try:
        before = answered(desk, "chat", QUESTIONS[0][0])
        worker = model.pid()
        done(rag_finetune, "dataset", "--questions", "questions.jsonl", "--test-share", 0.3, "--val-share", 0,
             "--out", "data.jsonl")  # fmt: skip
        done(rag_finetune, "train", "recipe.yaml")
        run = tmp_path / "rag-home" / "runs" / "recipe"
        done(rag_finetune, "export", run, "--to", "gguf-lora")
        done(rag_app, "adapters", "add", run, "--name", "mine")
        done(rag_app, "adapters", "use", "mine", "--force")
        after = answered(desk, "chat", QUESTIONS[0][0])
        assert (before.details["adapters"], after.details["adapters"]) == ([], ["mine"])
        assert after.content != before.content, "four large steps change what is said"
        assert model.pid() == worker, "the base model stays loaded"
        assert [turn.role for turn in desk.chats.turns("chat")] == ["user", "assistant"] * 2

        fresh = LlamaCpp(decoding=Decoding(max_tokens=12))
        try:
            passages = [hit["text"] for hit in after.details["hits"]]
            entry = desk.bot.adapters.get("mine")
            asked = [(m.role, m.content) for m in question_prompt(QUESTIONS[0][0], passages)]
            said = fresh.invoke(asked, adapters=[(fresh.adapter(entry), 1.0)], quotes=passages)
            assert said.text.strip().startswith(after.content[:8])
        finally:
            fresh.close()

        done(rag_app, "adapters", "rollback")
        again = answered(desk, "chat", QUESTIONS[0][0])
        assert (again.details["adapters"], again.content) == ([], before.content)
    finally:
        model.close()
