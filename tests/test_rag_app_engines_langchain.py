"""Any LangChain chat model as a generator: what comes through, what is held back, and whatever such a model may do."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import FakeListChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import Field

from rag_app.decoding import Decoding
from rag_app.engines.langchain import LangChainChat
from rag_app.errors import ServerFailed, SettingInvalid
from rag_app.prompt import Message
from tests.conftest import ROOT


class Scripted(BaseChatModel):
    """Streams what it is given, calls what can be called, and remembers what it was asked."""

    script: list[Any]
    asked: list[list[BaseMessage]] = Field(default_factory=list)
    left: Any = None

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        raise AssertionError("it streams")

    def _stream(self, messages: Any, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        self.asked.append(messages)
        try:
            for item in self.script:
                made = item() if callable(item) else item
                message = made if isinstance(made, AIMessageChunk) else AIMessageChunk(content=made)
                yield ChatGenerationChunk(message=message)
        finally:
            if self.left:
                self.left.set()


class Whole(BaseChatModel):
    """Does not stream."""

    @property
    def _llm_type(self) -> str:
        return "whole"

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage("one two three four"))])


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag_app.engines.outside.BEAT", 0.02)


def scripted(*script: Any, decoding: Decoding | None = None, **more: Any) -> LangChainChat:
    return LangChainChat(chat=Scripted(script=list(script), **more), decoding=decoding or Decoding())


def test_a_fake_model_of_langchain_answers_in_pieces() -> None:
    model = LangChainChat(chat=GenericFakeChatModel(messages=iter(["It is in Paris."])))
    chunks = list(model.stream([("system", "Be kind."), ("user", "Where?")]))
    assert [c.text for c in chunks if c.text] == ["It", " ", "is", " ", "in", " ", "Paris."]
    whole = sum(chunks[1:], chunks[0])
    assert whole.response_metadata == {"finish_reason": "stop"}
    assert whole.usage_metadata["output_tokens"] == 4  # 15 bytes


def test_a_model_that_does_not_stream_answers_too() -> None:
    model = LangChainChat(chat=Whole())
    assert model.invoke("Hi").text == "one two three four"
    cut = model.invoke("Hi", max_tokens=2)
    assert cut.text == "one two "
    assert cut.response_metadata["finish_reason"] == "length"


def test_contents_hold_no_control_tokens_when_they_go_out() -> None:
    model = scripted("fine")
    model.invoke([("system", "a</s>"), ("user", "b<|im_end|>"), ("assistant", "c"), ("user", "d")])
    assert isinstance(model.chat, Scripted)
    assert [(m.type, m.content) for m in model.chat.asked[-1]] == [
        ("system", "a< /s>"),
        ("human", "b< |im_end|>"),
        ("ai", "c"),
        ("human", "d"),
    ]


def test_blocks_of_content_are_text_but_for_the_thoughts() -> None:
    thought: Any = [{"type": "reasoning", "reasoning": "hm", "index": 0}]
    text: Any = [{"type": "text", "text": "Two", "index": 1}, {"type": "text", "text": " words", "index": 1}]
    assert scripted(thought, text, []).invoke("Hi").text == "Two words"


def test_counts_of_the_model_take_the_place_of_guesses() -> None:
    usage: Any = {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9, "input_token_details": {"cache_read": 5}}
    start: Any = {"input_tokens": 0, "output_tokens": 1, "total_tokens": 1}
    model = scripted(
        "a long word " * 5, AIMessageChunk("", usage_metadata=start), AIMessageChunk("", usage_metadata=usage)
    )
    assert model.invoke("Hi").usage_metadata == {
        "input_tokens": 7,
        "output_tokens": 3,
        "total_tokens": 10,
        "input_token_details": {"cache_read": 5},
    }


@pytest.mark.parametrize("reason", [{"finish_reason": "length"}, {"stop_reason": "max_tokens"}])
def test_a_reply_that_the_model_cut_says_so(reason: dict[str, str]) -> None:
    model = scripted("a", AIMessageChunk("b", response_metadata=reason))
    assert model.invoke("Hi").response_metadata["finish_reason"] == "length"


def test_a_stop_text_ends_the_stream_wherever_it_is_split() -> None:
    left = threading.Event()

    def endless() -> str:
        return "x"

    model = scripted("one\n", "two #", "#", "# three", *[endless] * 10**5, left=left, decoding=Decoding(stop=("###",)))
    reply = model.invoke("Hi")
    assert reply.text == "one\ntwo "
    assert reply.response_metadata["finish_reason"] == "stop"
    assert left.wait(10)
    assert model.invoke("Hi", stop=["\n"]).text == "one"
    assert scripted("so #", "#", decoding=Decoding(stop=("###",))).invoke("Hi").text == "so ##"


def test_the_most_tokens_end_the_stream() -> None:
    left = threading.Event()
    model = scripted(*["ü€🦒 "] * 10**5, left=left, decoding=Decoding(max_tokens=10))
    reply = model.invoke("Hi")
    assert reply.text == "ü€🦒 " * 4  # whole characters of 40 bytes
    assert reply.response_metadata["finish_reason"] == "length"
    assert reply.usage_metadata and reply.usage_metadata["output_tokens"] == 10
    assert left.wait(10)


def explode() -> None:
    raise ConnectionError("no route\nto host")


def leave() -> None:
    raise SystemExit(3)


@pytest.mark.parametrize("bad", [explode, leave, lambda: None, lambda: 7])
def test_whatever_a_model_does_wrong_is_one_line(bad: Callable[[], Any]) -> None:
    shown = []
    with pytest.raises(ServerFailed) as caught:
        for chunk in scripted("The", bad).stream("Hi"):
            shown.append(chunk.text)
    assert "".join(shown) == "The"
    assert "\n" not in str(caught.value) and "the model Scripted failed" in str(caught.value)


def test_a_model_that_says_nothing_failed() -> None:
    with pytest.raises(ServerFailed, match="failed"):
        scripted().invoke("Hi")
    assert scripted("").invoke("Hi").text == ""


def test_beats_come_while_the_model_is_silent_and_a_stop_needs_no_word_of_it() -> None:
    gate, left = threading.Event(), threading.Event()
    model = scripted(lambda: str(gate.wait(60)), "more", left=left)
    replies = model.stream("Hi")
    assert [next(replies).text for _ in range(3)] == ["", "", ""]
    replies.close()  # at once, although the model is silent
    assert not left.is_set()
    gate.set()
    assert left.wait(10)


@pytest.mark.parametrize("end", ["kill", "close"])
def test_kill_ends_a_reply_and_the_next_question_works(end: str) -> None:
    gate, asked = threading.Event(), threading.Event()

    def wait() -> str:
        asked.set()
        gate.wait(60)
        return ""

    model = scripted(wait, "fine")
    threading.Thread(target=lambda: (asked.wait(10), getattr(model, end)())).start()
    with pytest.raises(ServerFailed, match="ended"):
        list(model.stream("Hi"))
    gate.set()
    assert model.invoke("Hi").text == "fine"


def test_a_program_ends_although_the_model_never_answers() -> None:
    code = """
import threading
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from rag_app.engines.langchain import LangChainChat
class Never(FakeListChatModel):
    def _stream(self, *args, **kwargs):
        threading.Event().wait()
        yield
next(LangChainChat(chat=Never(responses=[])).stream("Hi"))
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "done\n" and not done.stderr


def test_what_cannot_be_passed_on_is_refused_by_name() -> None:
    for setting in ({"temperature": 0.5}, {"seed": 1}, {"top_k": 3}, {"num_beams": 2}, {"penalty_alpha": 0.5}):
        name = next(iter(setting))
        with pytest.raises(SettingInvalid, match=f"the engine 'langchain' has no {name}"):
            scripted("x", decoding=Decoding(**setting))  # type: ignore[arg-type]
    with pytest.raises(SettingInvalid, match="grammar"):
        scripted("x").invoke("Hi", grammar="root ::= 'a'")


def test_what_a_generator_has() -> None:
    model = LangChainChat(chat=FakeListChatModel(responses=["x"]), n_ctx=2000)
    model.start()
    assert (model.engine, model.abilities, model.window()) == ("langchain", frozenset(), 2000)
    assert model.check() == "FakeListChatModel"
    assert model.count_tokens([Message("user", "Name three colours.")]) > 5


# By name


MODULE = """
from langchain_core.language_models.fake_chat_models import FakeListChatModel
ready = FakeListChatModel(responses=["from a file"], name="mine")
def make():
    import my_settings
    return FakeListChatModel(responses=[my_settings.ANSWER])
class Holder:
    inner = ready
number = 7
def wants(argument): ...
def fails(): raise OSError("the key\\nis missing")
def nothing(): ...
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a module of the user's and documents that look like libraries."""
    (tmp_path / "my_model.py").write_text(MODULE)
    (tmp_path / "my_settings.py").write_text("ANSWER = 'made'")
    (tmp_path / "exits.py").write_text("raise SystemExit('bye')")
    (tmp_path / "broken.py").write_text("def broken(:")
    (tmp_path / "colorsys.py").write_text("raise AssertionError('a document was imported')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(ROOT))])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name in ("my_model", "my_settings", "exits", "broken"):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "answer"),
    [("my_model:ready", "from a file"), ("my_model:make", "made"), ("my_model:Holder.inner", "from a file")],
)
def test_a_model_in_the_current_folder(folder: Path, name: str, answer: str) -> None:
    before = list(sys.path)
    model = LangChainChat.named(name, n_ctx=512, decoding=Decoding(max_tokens=99))
    assert model.invoke("Hi").text == answer
    assert (model.window(), model.decoding.max_tokens) == (512, 99)
    assert sys.path == before  # documents there stay documents


def test_no_document_takes_the_place_of_a_library(folder: Path) -> None:
    sys.modules.pop("colorsys", None)
    with pytest.raises(SettingInvalid, match="TypeError"):
        LangChainChat.named("colorsys:rgb_to_hsv")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (None, "--model module:name"),
        ("", "--model module:name"),
        ("my_model", "--model module:name"),
        ("my_model.ready", "--model module:name"),
        ("no_such:thing", "No module named 'no_such'"),
        ("my_model:missing", "missing"),
        ("my_model:number", "is int"),
        ("my_model:nothing", "is NoneType"),
        ("my_model:wants", "argument"),
        ("my_model:fails", "OSError: the key is missing"),
        ("exits:thing", "SystemExit: bye"),
        ("broken:thing", "SyntaxError"),
        (":", "cannot be had"),
        ("../x:y", "cannot be had"),
        ("my model:y", "cannot be had"),
    ],
)
def test_a_name_that_gives_no_model(folder: Path, name: str | None, words: str) -> None:
    with pytest.raises(SettingInvalid) as caught:
        LangChainChat.named(name)
    assert words in str(caught.value) and "\n" not in str(caught.value)
