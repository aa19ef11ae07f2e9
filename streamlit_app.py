"""The chat page. Layout only: what it shows is made by rag_app."""

import html
import uuid
from dataclasses import replace
from typing import get_args

import streamlit as st

from index import RagError
from index.paths import shown
from rag_app.bot import Bot
from rag_app.chats import Chats, Turn
from rag_app.desk import Desk, Run
from rag_app.preferences import Preferences
from rag_app.settings import Options, Settings, Strategy, load, make_generator
from rag_app.show import Source, as_markdown, sources, steps


@st.cache_resource(show_spinner=False)
def open_desk() -> Desk:
    """One desk for all visitors; the models load while the first of them types."""
    settings = load()
    desk = Desk(Bot(make_generator(settings), options=settings.answer), Chats())
    desk.warm_up()
    return desk


def main() -> None:
    """Draws the page once."""
    st.set_page_config(page_title="Chat with your documents", page_icon="📄")
    try:
        desk = open_desk()
    except RagError as error:  # of the file of settings
        draw_error(str(error))
        st.button("Look again")
        return
    chat = st.query_params.get("chat", "") or uuid.uuid4().hex[:12]
    options = draw_sidebar(desk, chat)
    st.title("Chat with your documents")
    problem = desk.problem()
    if problem:
        draw_error(problem)
        st.button("Look again")
    run = desk.running(chat)
    turns = kept_turns(desk, chat)
    for number, turn in enumerate(turns):
        draw_turn(turn, f"{chat}-{number}")
        if turn.role == "assistant" and not turn.details.get("error"):
            draw_rating(desk, chat, turn)
    if not turns and not problem:
        st.caption("Ask a question. The answer names the passages that it comes from; open one to see it in its place.")
    question = st.chat_input("Ask about your documents", disabled=bool(problem or run))
    if question:
        begin(desk, chat, question, options)
    if run:
        follow(run)
        if not run.unkept:
            st.rerun()  # draws the kept answer, with its sources
        draw_error(run.unkept)


def begin(desk: Desk, chat: str, question: str, options: Options) -> None:
    """Starts an answer and draws the page anew: the question in it, the input closed, the address that of the chat."""
    try:
        kept = dict(desk.chats.settings(chat))
        for name in ("strategy", "adapter"):
            kept[name] = getattr(options, name)
            if kept[name] == getattr(desk.bot.options, name):
                del kept[name]
        desk.chats.set_settings(chat, kept)
        desk.ask(chat, question, options)
    except RagError as error:
        draw_error(str(error))
    else:
        st.query_params["chat"] = chat
        st.rerun()


def kept_turns(desk: Desk, chat: str) -> list[Turn]:
    """The conversation so far; says so where it cannot be read."""
    try:
        return desk.chats.turns(chat)
    except RagError as error:
        draw_error(str(error))
        return []


def draw_error(line: str) -> None:
    """An error's line, which may name files and repeat what a model file says: as text, like all of that."""
    st.error(as_markdown(line))


def draw_sidebar(desk: Desk, chat: str) -> Options:
    """A way to start afresh, how to answer, and what is indexed."""
    with st.sidebar:
        if st.button("New chat", icon=":material/add:", width="stretch"):
            st.query_params.clear()
            st.rerun()
        options = kept_options(desk, chat)
        names = get_args(Strategy)
        strategy = st.selectbox(
            "Strategy", names, names.index(options.strategy), key=f"strategy-{st.query_params.get('chat', 'new')}"
        )
        options = replace(options, strategy=strategy, adapter=draw_adapter(desk, options))
        if not desk.problem():
            draw_answering(desk, options)
    return options


def draw_adapter(desk: Desk, options: Options) -> str | None:
    """Which adapter answers in this conversation; by default the one in use, whichever that comes to be."""
    default, there = desk.bot.options.adapter, desk.adapters()
    if not there:
        return default
    key = f"adapter-{st.query_params.get('chat', 'new')}"
    kept = "" if options.adapter in (None, default) else options.adapter
    ways = list(dict.fromkeys(["", "off", *there, kept, st.session_state.get(key, "")]))  # one that is gone, too
    chosen = st.selectbox(
        "Adapter",
        ways,
        ways.index(kept),
        format_func=lambda way: way or ("the one in use" if default is None else "the one in config.toml"),
        key=key,
    )
    return chosen or default


def draw_answering(desk: Desk, options: Options) -> None:
    """What a question would be answered from, and by what."""
    status = desk.bot.index().status()
    st.caption(f"{status['files']} documents, {status['chunks']:,} passages")
    for root in status["roots"]:
        st.caption(f":material/folder: {as_markdown(shown(root))}")
    st.caption(f":material/neurology: {as_markdown(desk.model_name())}")
    try:
        st.caption(f":material/tune: {as_markdown(desk.adapters_for(options) or 'no adapter')}")
    except RagError as error:
        st.caption(f":material/warning: {as_markdown(str(error))}")


def kept_options(desk: Desk, chat: str) -> Options:
    """How this conversation is answered: its own settings over those of the program."""
    try:
        own = desk.chats.settings(chat)
    except RagError:  # the conversation itself will say it
        own = {}
    return Preferences(Settings(answer=desk.bot.options), own).options()


def draw_rating(desk: Desk, chat: str, turn: Turn) -> None:
    """Thumbs up or down; kept at once."""
    key = f"rating-{chat}-{turn.id}"

    def keep() -> None:
        thumb = st.session_state[key]
        try:
            desk.chats.rate(chat, turn.id, 0 if thumb is None else 2 * thumb - 1)
        except RagError as error:
            st.toast(as_markdown(str(error)))
        else:
            st.toast("Rating kept." if thumb is not None else "Rating taken back.")

    st.feedback("thumbs", key=key, default={1: 1, -1: 0}.get(turn.rating), on_change=keep)


def draw_turn(turn: Turn, key: str) -> None:
    """A message as it was kept: the question, or the answer with its sources."""
    with st.chat_message(turn.role):
        if turn.role == "user":
            st.text(turn.content)
            return
        draw_way(turn)
        st.markdown(as_markdown(turn.content))
        for note in turn.details.get("notes") or ():
            st.caption(as_markdown(str(note)))
        if turn.details.get("stopped"):
            st.caption(":material/stop_circle: stopped")
        if turn.details.get("error"):
            draw_error(str(turn.details["error"]))
        elif unsupported(turn):
            st.caption(":material/warning: No passage bears this answer out. Read the nearest ones yourself:")
        if turn.details.get("refused"):
            st.caption("The nearest passages:")
        for number, source in enumerate(sources(turn.details)):
            draw_source(source, f"{key}-{number}")


def draw_way(turn: Turn) -> None:
    """How the answer came about: the query, where it is not the question itself, and the steps."""
    query = turn.details.get("query")
    if query and query != turn.details.get("question"):
        st.caption(f":material/search: searched for: {as_markdown(str(query))}")
    taken = steps(turn.details)
    if taken:
        with st.expander(f"{len(taken)} steps" if len(taken) > 1 else "1 step"):
            for step in taken:
                st.text(step)


def unsupported(turn: Turn) -> bool:
    """Whether an answer stands without a single quote behind it."""
    return not any(turn.details.get(key) for key in ("citations", "refused", "stopped", "error"))


def draw_source(source: Source, key: str) -> None:
    """A source, closed; opened, it shows the passage with what is quoted from it marked."""
    with st.expander(as_markdown(source.label), key=key, icon=":material/format_quote:" if source.cited else None):
        marked = "".join(
            f'<mark style="background: rgba(255, 196, 0, 0.35); color: inherit">{html.escape(text)}</mark>'
            if is_quote
            else html.escape(text)
            for text, is_quote in source.pieces
        )
        st.html(f'<div style="white-space: pre-wrap; overflow-wrap: anywhere">{marked}</div>')
        st.caption(as_markdown(source.place))


def follow(run: Run) -> None:
    """Shows an answer while it is made, with a way to stop it."""
    with st.chat_message("assistant"):
        stage, text = st.empty(), st.empty()
        st.button("Stop", icon=":material/stop_circle:", on_click=run.stop)
        for doing, so_far in run.follow():
            if doing:
                stage.caption(f":material/hourglass_top: {doing}")
            else:
                stage.empty()
            text.markdown(as_markdown(so_far))


if __name__ == "__main__":
    main()
