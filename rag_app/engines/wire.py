"""One OpenAI-compatible server over HTTP: requests, streams, retries, and a line for whatever goes wrong.

Knows the protocol and nothing of LangChain, prompts or settings. Requests run as tasks of an event loop in a thread of
its own, because only a task can be cancelled at any point: in a look-up, in a handshake, in mid-stream.
"""

import asyncio
import os
import queue
import random
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from time import time
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

from rag_app.decoding import shown
from rag_app.engines.outside import END, drain, one_line
from rag_app.errors import ServerFailed, SettingInvalid

if TYPE_CHECKING:
    from openai import AsyncOpenAI

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0
"""Seconds before the first retry, doubled for each further one up to the longest."""
PATIENCE = 60.0
"""Longest wait in seconds that a server may ask for (Retry-After)."""
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Statuses for which the same request may do better later."""
MOST = 10**9
"""Tokens that no prompt, reply or window has."""
Put = Callable[[Any], None]


class Failure(ServerFailed):
    """What went wrong, as a line, and what the caller may act on."""

    def __init__(
        self, line: str, *, status: int = 0, said: str = "", passing: bool = False, after: float = 0.0
    ) -> None:
        super().__init__(line)
        self.status, self.said = status, said
        """HTTP status, 0 without one, and the server's words."""
        self.passing, self.after = passing, after
        """Whether it may pass, and the seconds that the server asks to wait."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one event of a stream holds."""

    text: str = ""
    thinks: bool = False
    """Whether it holds reasoning or a tool call, which are no part of the answer."""
    finish: str = ""
    prompt: int = 0
    written: int = 0
    cached: int = 0


class Wire:
    """A server and the requests under way to it. Threads may share it."""

    def __init__(self, base_url: str, key_env: str, timeout: float, retries: int) -> None:
        self._url = base_url.rstrip("/")
        parts = _address(self._url)
        self.address = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))  # no password in messages
        self.root = self._url.removesuffix("/v1")
        """Where a server has what is no part of OpenAI's interface."""
        self._local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        self._key_env, self._timeout, self._retries = key_env, timeout, retries
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: AsyncOpenAI | None = None
        self._running: set[Future[None]] = set()

    def ask(self, path: str, body: object = None) -> Any:
        """The JSON that a path answers with: GET without a body, POST with one. Waits for it.

        Args:
            path: below the base URL, or a whole address.
            body: what is sent as JSON.

        Raises:
            Failure: there is no such answer.
        """
        client = self._ready()

        async def once(put: Put) -> None:
            async with asyncio.timeout(2 * self._timeout):  # to connect, and to answer: it may come drop by drop
                if body is None:
                    answer = await client.get(path, cast_to=object)
                else:
                    answer = await client.post(path, body=body, cast_to=object)
            if not isinstance(answer, dict | list):
                raise Failure(f"{self.address} answers {path} with what is no JSON: {REMEDY}", said=str(answer))
            put(answer)

        return next(item for item in self._run(once) if item is not None)

    def chat(self, body: dict[str, Any]) -> Iterator[Piece | None]:
        """The pieces of a reply; None is a beat. Closing the iterator closes the connection.

        Raises:
            Failure: the server is down, slow, refuses, or breaks off.
        """
        client = self._ready()

        async def once(put: Put) -> None:
            async with asyncio.timeout(2 * self._timeout) as limit:  # to connect, and to begin to answer
                stream = await client.post(
                    "/chat/completions", body=body, cast_to=object, stream=True, stream_cls=_stream_kind()
                )
                try:
                    kind = stream.response.headers.get("content-type", "")
                    if "event-stream" not in kind:
                        what = one_line(kind) or "something"
                        raise Failure(f"{self.address} answers with {what}, no stream: {REMEDY}")
                    await self._read(stream, put, limit)
                finally:
                    await stream.close()

        return self._run(once)

    async def _read(self, stream: Any, put: Put, limit: asyncio.Timeout) -> None:
        """Puts the pieces; signs of life without a word, comments and empty pieces, put off the limit no more."""

        def go_on(seconds: float) -> None:
            limit.reschedule(asyncio.get_running_loop().time() + seconds)

        finished = spoken = False
        go_on(self._timeout)
        async for event in stream:
            piece = _piece(event)
            finished, spoken = finished or bool(piece.finish), spoken or bool(piece.text or piece.thinks)
            if piece != Piece():
                go_on(self._timeout)
            put(piece)
        if not (finished or (spoken and stream.done)):
            raise Failure(
                f"{self.address} left its reply without an end: look at its log (a prompt beyond its window "
                "can do that; --n-ctx tells the window)",
                passing=True,
            )

    def kill(self) -> None:
        """Ends every request under way; whoever waits for one gets a ServerFailed."""
        with self._lock:
            running = list(self._running)
        for future in running:
            future.cancel()

    def close(self) -> None:
        """Ends every request and the thread; the next request starts another."""
        self.kill()
        with self._lock:
            loop, client, self._loop, self._client = self._loop, self._client, None, None
        if loop and client:
            asyncio.run_coroutine_threadsafe(_end(client), loop).add_done_callback(
                lambda _: loop.call_soon_threadsafe(loop.stop)
            )

    def _ready(self) -> "AsyncOpenAI":
        with self._lock:
            if self._client is None:
                self._client = self._connect()
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, daemon=True).start()
            return self._client

    def _connect(self) -> "AsyncOpenAI":
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Timeout

        key = os.environ.get(self._key_env, "").strip()
        if not key.isascii() or not key.isprintable():
            raise SettingInvalid(f"the key in ${self._key_env} has characters that no key has: set it again")
        # A proxy of the environment does not reach this machine's own servers. A redirect would turn POST to GET.
        client = DefaultAsyncHttpxClient(trust_env=not self._local, follow_redirects=False)
        try:
            return AsyncOpenAI(
                base_url=self._url,
                api_key=key or "none",  # it insists on one
                max_retries=0,  # ours know that a reply has begun
                timeout=Timeout(self._timeout),
                http_client=client,
            )
        except Exception as error:  # InvalidURL, of a host that cannot be
            raise SettingInvalid(f"base_url is '{self.address}' ({one_line(error)}): mend it") from error

    def _run(self, once: Callable[[Put], Coroutine[Any, Any, None]]) -> Iterator[Any]:
        items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with self._lock:  # a kill meets a request before it is sent or finds it here
            if not self._loop:
                raise Failure("the request was ended: ask again")
            future = asyncio.run_coroutine_threadsafe(self._retrying(once, items.put), self._loop)
            self._running.add(future)
        future.add_done_callback(lambda _: items.put(END))
        try:
            yield from drain(items)
            future.result()
        except CancelledError:
            raise Failure("the request was ended: ask again") from None
        finally:
            # No lock: the garbage collector may close this iterator in the middle of anything.
            future.cancel()
            self._running.discard(future)

    async def _retrying(self, once: Callable[[Put], Awaitable[None]], put: Put) -> None:
        begun = False

        def note(item: Any) -> None:
            nonlocal begun
            begun = begun or not isinstance(item, Piece) or bool(item.text)
            put(item)

        for number in range(self._retries + 1):
            try:
                return await once(note)
            except Exception as error:  # whatever the libraries raise becomes a line
                failure = self._failure(error)
                if begun:
                    raise Failure(f"the answer broke off: {failure}. Ask again") from error
                if not failure.passing or failure.after > PATIENCE or number == self._retries:
                    raise failure from error
                await asyncio.sleep(failure.after or _pause(number))

    def _failure(self, error: Exception) -> Failure:
        import openai

        if isinstance(error, Failure):
            return error
        if isinstance(error, openai.APIStatusError):
            return self._refused(error)
        cause = type(error.__cause__ or error).__name__
        reason = one_line(error.__cause__ or error) or cause
        if isinstance(error, TimeoutError) or (isinstance(error, openai.APITimeoutError) and cause != "ConnectTimeout"):
            return Failure(f"{self.address} said nothing for {self._timeout:g} s: ask again, or raise --timeout")
        if cause in ("ConnectError", "ConnectTimeout", "UnsupportedProtocol", "ProxyError"):
            return Failure(f"{self.address} cannot be reached ({reason}): start the server, or check --base-url")
        if isinstance(error, openai.APIConnectionError):
            return Failure(
                f"the connection to {self.address} was cut ({reason}): look at the server's log", passing=True
            )
        if isinstance(error, openai.APIError):  # an error as an event of the stream
            return Failure(f"{self.address} failed: {self._quoted(error.message)}", said=error.message, passing=True)
        return Failure(
            f"{self.address} sends what is no reply ({cause}: {self._quoted(reason)}): {REMEDY}", passing=True
        )

    def _refused(self, error: Any) -> Failure:
        status, said = int(error.status_code), _words_of(error)
        quoted = self._quoted(said)
        after = _retry_after(error.response.headers.get("retry-after", ""))
        passing = status in PASSING and error.code != "insufficient_quota"
        match status:
            case 401 | 403:
                has = "is refused" if os.environ.get(self._key_env) else "is not set"
                line = f"{self.address} wants a key, and ${self._key_env} {has}: set it, or name another variable"
            case 404 | 405:
                line = f"{self.address} has no such thing ({quoted}): check --model and --base-url (it ends with /v1)"
            case 429:
                wait = f" for {after:,.0f} s" if after else ""
                line = f"{self.address} takes no more requests now ({quoted}): wait{wait}, and ask again"
            case _ if 300 <= status < 400:
                to = self._quoted(error.response.headers.get("location", "elsewhere"))
                line = f"{self.address} sends on to {to}: give the address where it ends with --base-url"
            case _ if status >= 500:
                line = f"{self.address} failed ({status}: {quoted}): look at its log, and ask again"
            case _:
                line = f"{self.address} refuses the request ({status}: {quoted}): change what it names"
        return Failure(line, status=status, said=said, passing=passing, after=after)

    def _quoted(self, text: str) -> str:
        """A server's words, fit for a message: one line, and never the key."""
        key = os.environ.get(self._key_env, "").strip()
        return one_line(text.replace(key, "***") if key else text)


REMEDY = "check that --base-url is of an OpenAI-compatible server (it ends with /v1)"


def _address(url: str) -> SplitResult:
    """The parts of an address, refused where no request could go there."""
    try:
        parts = urlsplit(url)
        port = parts.port  # raises for one that cannot be
    except ValueError:
        parts, port = urlsplit(""), 0
    sound = parts.scheme in ("http", "https") and parts.hostname and port != 0 and not re.search(r"[\s\x00-\x1f]", url)
    if not sound:
        safe = re.sub(r"//[^/]*@", "//", url)  # no password in messages
        raise SettingInvalid(f"base_url is {shown(safe)}: give an address such as http://localhost:8080/v1")
    return parts


@lru_cache(1)
def _stream_kind() -> type[Any]:
    """A stream of OpenAI's client that tells whether the server said that it is done."""
    from openai import AsyncStream

    class Told(AsyncStream[object]):
        done = False

        async def _iter_events(self) -> AsyncIterator[Any]:
            async for event in super()._iter_events():
                self.done = self.done or event.data.startswith("[DONE]")
                yield event

    return Told


async def _end(client: "AsyncOpenAI") -> None:
    await client.close()
    await asyncio.get_running_loop().shutdown_asyncgens()
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*rest, return_exceptions=True)


def _words_of(error: Any) -> str:
    """What a refusal says, from the JSON shapes that servers use; of a page of HTML only that it is one."""
    body = error.body
    for name in ("error", "message", "detail"):
        if isinstance(body, dict) and name in body:
            body = body[name]
    text = str(body or error.response.text or error.response.reason_phrase)
    return "a page of HTML" if "<html" in text[:1000].lower() else text


def _retry_after(header: str) -> float:
    with suppress(ValueError):
        return max(0.0, float(header))
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(header).timestamp() - time())
    return 0.0


def _pause(number: int) -> float:
    pause = min(FIRST_PAUSE * 2.0 ** min(number, 30), LONGEST_PAUSE)
    return pause * random.uniform(0.75, 1.0)  # so that many programs do not come back at once


def _piece(event: Any) -> Piece:
    """Raises whatever an event of another shape leads to; it becomes a line."""
    choice = (event.get("choices") or [{}])[0]
    delta = choice.get("delta") or {}
    usage = event.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    content = delta.get("content") or ""
    if isinstance(content, list):  # Mistral's: blocks, those of thoughts among them
        content = "".join(block["text"] for block in content if block.get("type") == "text")
    if not isinstance(content, str):
        raise TypeError(f"content is {content!r}")
    return Piece(
        text=content,
        thinks=any(delta.get(name) for name in ("reasoning_content", "reasoning", "tool_calls", "function_call")),
        finish=str(choice.get("finish_reason") or ""),
        prompt=count(usage.get("prompt_tokens")),
        written=count(usage.get("completion_tokens")),
        cached=count(details.get("cached_tokens")) if isinstance(details, dict) else 0,
    )


def count(value: object) -> int:
    """A number of tokens that a server tells; 0, for not known, where that is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < MOST else 0
