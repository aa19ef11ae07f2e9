"""The chat page in a real headless Chromium, served as `make chat` serves it, with the real encoder and model."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from index import Index, build
from rag_app.adapters.registry import Registry
from rag_app.adapters.state import parsed
from rag_app.chats import Chats, Turn
from rag_app.models import locate
from tests.conftest import ROOT, copy_of
from tests.test_rag_app_engines_adapters import write_lora

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium; to run the browser tests: sudo apt-get install chromium"),
]
QUESTION = "Where does the okapi live and how long is its tongue?"
PATIENCE = 120_000  # ms; only how long a broken page is waited for


class Served:
    """A running page server, its home, and the process that runs its model."""

    def __init__(self, url: str, process: subprocess.Popen[str], home: Path) -> None:
        self.url, self.process, self.home = url, process, home

    def worker(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        pids = [int(pid) for file in children for pid in file.read_text().split()]
        return next(pid for pid in pids if b"rag_app.engines.worker" in Path(f"/proc/{pid}/cmdline").read_bytes())


@contextmanager
def serve(home: Path, **settings: str) -> Iterator[Served]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "streamlit_app.py", "--server.address", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--server.port", str(port)],
        cwd=ROOT,
        env={**os.environ, "RAG_HOME": str(home), **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout
        seen = []
        for line in process.stdout:
            seen.append(line)
            if "URL" in line:
                break
        assert process.poll() is None, "".join(seen)
        yield Served(f"http://127.0.0.1:{port}", process, home)
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.fixture(scope="module")
def served(real_index: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("home")
    copy_of(real_index, home / "index")
    with serve(home) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    arguments += [
        "--disable-component-update",
        "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ]
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context()
    context.set_default_timeout(PATIENCE)
    tab = context.new_page()
    tab.asked_for = []
    tab.on("request", lambda request: tab.asked_for.append(request.url))
    yield tab
    context.close()


def ask(page: Any, question: str) -> None:
    field = page.get_by_test_id("stChatInputTextArea")
    field.fill(question)
    field.press("Enter")


def answer(page: Any) -> Any:
    return page.get_by_test_id("stChatMessage").nth(-1)


@contextmanager
def held(page: Any, served: Served, question: str) -> Iterator[int]:
    """Asks, and holds the worker when the answer's first words stand on the page, so that no look at it is a race.

    The worker runs for a frame of the page at a time: the whole answer takes less than the page to show its beginning.
    """
    wait_until_done(page)
    worker = served.worker()
    os.kill(worker, signal.SIGSTOP)
    try:
        ask(page, question)
        page.get_by_role("button", name="Stop").wait_for()
        for _ in range(5000):
            if page.evaluate(HAS_BEGUN):
                break
            os.kill(worker, signal.SIGCONT)
            page.evaluate("() => new Promise(requestAnimationFrame)")
            os.kill(worker, signal.SIGSTOP)
        yield worker
    finally:
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGCONT)


HAS_BEGUN = """() => {
    const messages = [...document.querySelectorAll('[data-testid=stChatMessage]')];
    if (messages.length == 0 || messages.length % 2) return false;  // a question without its answer
    const blocks = messages.at(-1).querySelectorAll('[data-testid=stMarkdownContainer] p');
    return [...blocks].some(p => !p.closest('[data-testid=stCaptionContainer], button') && p.innerText.trim());
}"""
"""Whether there is any text of the answer: the stage line above it is a caption, and gone by then."""


def text_of(page: Any) -> str:
    blocks = answer(page).locator("[data-testid=stMarkdown] [data-testid=stMarkdownContainer]").all_inner_texts()
    return "\n".join(blocks).strip()


def wait_until_done(page: Any) -> None:
    """Waits for the input to open: it is drawn after the kept messages, and closed before an answer's first sign."""
    page.locator("[data-testid=stChatInputTextArea]:enabled").wait_for()


def test_ask_watch_the_stream_open_a_source_reload(page: Any, served: Served) -> None:
    page.goto(served.url)
    page.get_by_text("3 documents").wait_for()
    with held(page, served, QUESTION):
        begun = text_of(page)
        assert page.get_by_role("button", name="Stop").is_visible()
        assert page.get_by_test_id("stHelp").count() == 0  # Streamlit shows the help of what a bare expression gives
        assert page.get_by_test_id("stChatInputTextArea").is_disabled()
    wait_until_done(page)
    whole = text_of(page)
    assert len(whole) > len(begun)
    assert "Ituri" in whole or "45" in whole

    source = answer(page).get_by_test_id("stExpander").first
    assert "animals.md" in source.inner_text()
    source.click()
    source.get_by_text("The okapi lives in the Ituri rainforest.").first.wait_for()
    assert source.locator("mark").first.inner_text() in Path(served_facts(served)).read_text("utf-8")

    page.reload()
    page.get_by_test_id("stExpander").first.wait_for()
    assert QUESTION in page.get_by_test_id("stChatMessage").first.inner_text()
    assert text_of(page) == whole
    outside = [url for url in page.asked_for if not re.match(r"(http|ws)://127\.0\.0\.1|data:|blob:", url)]
    assert not outside


def served_facts(served: Served) -> str:
    """The document that the answer is about."""
    with Index.open(served.home / "index") as index:
        return index.search("okapi", 1, "lexical")[0].source


def test_stop_in_the_middle_keeps_what_is_written(page: Any, served: Served) -> None:
    page.goto(served.url)
    with held(page, served, QUESTION):
        begun = text_of(page)
        page.get_by_role("button", name="Stop").click()
        answer(page).locator("[data-testid=stCaptionContainer]", has_text="stopped").wait_for()
    assert text_of(page).startswith(begun[:10])
    ask(page, "What is the lunch allowance?")
    page.get_by_test_id("stChatMessage").nth(3).wait_for()
    wait_until_done(page)
    assert "14" in text_of(page)


def test_reload_in_the_middle_does_not_cut_the_answer(page: Any, served: Served) -> None:
    page.goto(served.url)
    with held(page, served, QUESTION):
        page.reload()
        page.get_by_role("button", name="Stop").wait_for()
    wait_until_done(page)
    assert "stopped" not in answer(page).inner_text()
    assert text_of(page)


def test_killed_worker_is_an_error_and_the_next_question_works(page: Any, served: Served) -> None:
    page.goto(served.url)
    with held(page, served, QUESTION) as worker:
        os.kill(worker, signal.SIGKILL)
    page.get_by_text("the process that runs the model ended").wait_for()
    ask(page, "What is the lunch allowance?")
    page.get_by_test_id("stChatMessage").nth(3).wait_for()
    wait_until_done(page)
    assert "14" in text_of(page)


def test_no_index_then_one(page: Any, facts: Path, real_encoder: Any, tmp_path: Path) -> None:
    with serve(tmp_path / "home") as server:
        page.goto(server.url)
        page.get_by_text("there is no index at").wait_for()
        assert page.get_by_test_id("stChatInputTextArea").is_disabled()
        assert not (tmp_path / "home").exists()
        build([facts], tmp_path / "home" / "index", encoder=real_encoder)
        page.get_by_role("button", name="Look again").click()
        page.locator("[data-testid=stChatInputTextArea]:enabled").wait_for()
        page.get_by_text("3 documents").wait_for()


def test_no_model(page: Any, real_index: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    copy_of(real_index, home / "index")
    with serve(home, RAG_MODEL="/nowhere/model.gguf") as server:
        page.goto(server.url)
        page.get_by_text("'/nowhere/model.gguf' does not exist").wait_for()


def test_bad_questions_get_a_message(page: Any, served: Served) -> None:
    page.goto(served.url)
    ask(page, "word " * 20_000)
    page.get_by_text("tokens long").wait_for()
    wait_until_done(page)
    assert page.get_by_text("tokens long").is_visible()


def test_an_adapter_that_comes_into_use_gives_the_next_answer(served: Served, page: Any, tmp_path: Path) -> None:
    page.goto(served.url)
    ask(page, QUESTION)
    page.get_by_label("Thumbs up").nth(0).wait_for()
    worker, registry = served.worker(), Registry(served.home)
    registry.add(write_lora(tmp_path / "loud.gguf", 1, scale=4), "loud", base=str(locate()))
    try:
        registry.use(parsed("loud:2"))
        page.reload()
        page.get_by_text("loud:2").wait_for()
        ask(page, QUESTION)
        page.get_by_label("Thumbs up").nth(1).wait_for()
        page.get_by_label("Adapter").click()
        page.get_by_role("option", name="grounded").click()
        ask(page, QUESTION)
        page.get_by_label("Thumbs up").nth(2).wait_for()
    finally:
        registry.rollback()
        registry.remove("loud")
    chat = re.search(r"chat=(\w+)", page.url)[1]  # type: ignore[index]
    first, changed, last = Chats(served.home / "chats.sqlite3").turns(chat)[1::2]
    assert [one.details["adapters"] for one in (first, changed, last)] == [["grounded"], ["loud:2"], ["grounded"]]
    assert last.content == first.content != changed.content
    assert served.worker() == worker, "the base model stays loaded"


def kept_chat(home: Path, adapter: str) -> str:
    """The id of a conversation that has an adapter of its own."""
    chats = Chats(home / "chats.sqlite3")
    chats.add("kept", Turn("user", QUESTION))
    chats.set_settings("kept", {"adapter": adapter, "k": 2})
    return "kept"


def test_what_a_conversation_and_the_settings_say_of_adapters_holds(
    page: Any, real_index: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    copy_of(real_index, home / "index")
    (home / "config.toml").write_text('[answer]\nadapter = "off"\n')
    chats = Chats(home / "chats.sqlite3")
    chat = kept_chat(home, "grounded:0.5")
    with serve(home) as served:
        page.goto(served.url)
        page.get_by_text("no adapter").wait_for()
        ask(page, QUESTION)
        page.get_by_label("Thumbs up").wait_for()
        page.goto(f"{served.url}/?chat={chat}")
        page.get_by_test_id("stCaptionContainer").get_by_text("grounded:0.5").wait_for()
        ask(page, QUESTION)
        page.get_by_label("Thumbs up").wait_for()
        chats.set_settings(chat, {"adapter": "gone"})
        page.goto(f"{served.url}/?chat={chat}")
        page.get_by_test_id("stSidebar").get_by_text("there is no adapter 'gone'").wait_for()
        ask(page, QUESTION)
        page.get_by_test_id("stChatMessage").get_by_text("there is no adapter 'gone'").wait_for()
        page.get_by_label("Adapter").click()
        page.get_by_role("option", name="the one in config.toml").click()
        ask(page, QUESTION)
        page.get_by_label("Thumbs up").nth(1).wait_for()
    [other] = [one.id for one in chats.chats() if one.id != chat]
    assert [one.details["adapters"] for one in chats.turns(other)[1:]] == [[]]
    _, _, half, _, gone, _, last = chats.turns(chat)
    assert (half.details["adapters"], len(half.details["hits"]), last.details["adapters"]) == (["grounded:0.5"], 2, [])
    assert "there is no adapter 'gone'" in gone.details["error"]
    assert chats.settings(chat) == {}


def test_strategy_and_rating_are_kept_with_the_conversation(served: Served, page: Any) -> None:
    page.goto(served.url)
    page.get_by_label("Strategy").click()
    page.get_by_role("option", name="few-shot").click()
    ask(page, "What is the lunch allowance?")
    page.get_by_label("Thumbs up").click()
    page.get_by_text("Rating kept.").wait_for()
    chat = re.search(r"chat=(\w+)", page.url)[1]  # type: ignore[index]
    chats = Chats(served.home / "chats.sqlite3")
    page.reload()
    page.get_by_role("radio", name="Thumbs up", checked=True).wait_for()
    assert chats.settings(chat) == {"strategy": "few-shot"}
    [_, answered] = chats.turns(chat)
    assert (answered.rating, answered.details["strategy"]) == (1, "few-shot")
    assert page.get_by_role("combobox", name="Strategy").input_value() == "few-shot"
