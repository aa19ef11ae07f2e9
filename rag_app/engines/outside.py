"""What it takes to talk to a model whose tokenizer and chat template are elsewhere. Knows no engine.

Contents come from documents and people: what would be read as a control token is made plain text. Tokens are
estimated, and rather too many than too few. Replies come with beats, so that one can be stopped before its first word.
"""

import queue
import re
from collections.abc import Iterator, Sequence
from typing import Any

from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk

from rag_app.engines.marks import whole
from rag_app.prompt import Message, Role

BEAT = 0.2
"""Seconds between two beats."""
PER_MESSAGE, PER_PROMPT = 16, 64
"""Tokens allowed for what a chat template writes around a message and around them all."""
ROLES: dict[str, Role] = {"system": "system", "human": "user", "ai": "assistant"}

# <s>, <EOT>, <think>, <AI>, <image>, <start_of_turn>, <fim-prefix>, <seed:bos>, <unused9>, <0x0A>, <用户>. No HTML.
_NAMES = (
    "(?i:s|bos|eos|pad|unk|cls|sep|mask|eo[adhmptw]|so[phtw]|ai|think|tools|filename|reponame|image|img|video|audio|"
    r"(?:unused|ctrl|extra|reserved|special)\d+|0x[0-9a-f]{2}|fim-\w+|seed:\w+)|\w*_\w*|[\u3400-\u9fff]{1,8}"
)
# [INST], [BOS], [UNUSED_TOKEN_146]
_MARKS = (
    "INST|THINK|TOOL_CALLS|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CONTENT|SYSTEM_PROMPT|MODEL_SETTINGS|ARGS|CALL_ID|"
    "IMG|IMG_BREAK|IMG_END|AUDIO|BEGIN_AUDIO|PREFIX|MIDDLE|SUFFIX|gMASK|sMASK|BOS|EOS|PAD|SEP|CLS|MASK|UNK|"
    r"(?:UNUSED_TOKEN_|UNUSED|unused|CONTROL_|control_)\d+"
)
_CONTROL = re.compile(
    "|".join(
        (
            r"<(?=[|｜][^<>\s]{1,64}>|[^<>\s]{1,64}[|｜]>)",  # <|im_end|>, <｜User｜>, <|turn> and <turn|>
            r"‹(?=[|｜][^‹›\s]{1,64}›)",
            r"\[(?=[|｜][^\[\]\s]{1,64}[|｜]\])",  # [|assistant|]
            f"<(?=/?(?:{_NAMES})>|<?/?SYS>>)",
            rf"\[(?=/?(?:{_MARKS})\])",
            r"\](?=~[a-z]\]|~![a-z]\[|![a-z]~\[)|\[(?=[a-z]~\[)",  # ]~b], ]~!b[, ]!p~[, [e~[
        )
    )
)

_WORD = re.compile(r"\S+|([^\S])\1*")
_PART = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|[^A-Za-z]")


def neutral(text: str) -> str:
    """The text with a space after the first character of whatever looks like a control token: `< |im_end|>`.

    A space and no invisible character: some tokenizers drop those before they look for control tokens. Halves of
    characters, which cannot be sent, become U+FFFD.
    """
    return _CONTROL.sub(lambda mark: f"{mark[0]} ", whole(text))


def neutral_turns(messages: Sequence[BaseMessage]) -> list[Message]:
    """LangChain's messages as ours, their contents made neutral."""
    return [Message(ROLES.get(m.type, "user"), neutral(str(m.text))) for m in messages]


def estimate(messages: Sequence[Message]) -> int:
    """Tokens of a prompt without a tokenizer, rather too many.

    Beside the bundled model's tokenizer, whose vocabulary is small: twice the truth for English and for code, 1.1 to
    1.7 times for German, Polish, Finnish, Turkish and Chinese, and not below it for figures, base64 and symbols.
    """
    return PER_PROMPT + sum(PER_MESSAGE + _tokens(m.content) for m in messages)


def _tokens(text: str) -> int:
    total = 0
    for match in _WORD.finditer(text):
        word = match[0]
        if word.isspace():
            # One space goes with the letters that follow; figures and symbols it does not join.
            joins = word == " " and text[match.end() : match.end() + 1].isalpha()
            total += 0 if joins else -(-len(word) // 4)
        elif len(word) > 24:  # no word of a language: base64, an address, DNA
            total += len(word.encode("utf-8", "replace"))
        else:
            total += sum(_part(part) for part in _PART.findall(word))
    return total


def _part(part: str) -> int:
    if not part.isascii() or not part.isalpha():
        return len(part.encode("utf-8", "replace"))  # no byte-level tokenizer makes more of it
    return -(-len(part) // 3) if len(part) < 6 else -(-len(part) // 2)


class Tally:
    """A reply as LangChain's chunks whose token counts add up to the totals, however early it is stopped."""

    def __init__(self) -> None:
        self.prompt = self.written = self.cached = 0

    def chunk(
        self, text: str = "", *, prompt: int = 0, written: int = 0, cached: int = 0, reason: str = ""
    ) -> ChatGenerationChunk:
        """A piece of the reply; the counts are totals so far, 0 for not known."""
        more = [(prompt or self.prompt) - self.prompt, (written or self.written) - self.written]
        message = AIMessageChunk(
            content=text,
            response_metadata={"finish_reason": reason} if reason else {},
            usage_metadata={
                "input_tokens": more[0],
                "output_tokens": more[1],
                "total_tokens": sum(more),
                "input_token_details": {"cache_read": (cached or self.cached) - self.cached},
            },
        )
        self.prompt, self.written, self.cached = prompt or self.prompt, written or self.written, cached or self.cached
        return ChatGenerationChunk(message=message)


END = object()
"""What a producer puts last."""


def drain(items: "queue.SimpleQueue[Any]") -> Iterator[Any]:
    """What another thread puts, until END; None where nothing comes for a beat; an exception is raised."""
    while True:
        try:
            item = items.get(timeout=BEAT)
        except queue.Empty:
            yield None
            continue
        if item is END:
            return
        if isinstance(item, BaseException):
            raise item
        yield item


def one_line(text: object, most: int = 300) -> str:
    """What a stranger says, fit for a message of ours."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[:most]}…"
