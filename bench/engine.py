"""The llama.cpp engine beside llama-cpp-python: overhead, reuse of prompts, cost of quotes, worth of drafting.

Run on an idle machine: .venv/bin/python -m bench.engine [SECTION …]
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from bench.machine import machine
from rag_app.decoding import Decoding
from rag_app.engines.decoder import Batch, Decoder, cut
from rag_app.engines.llama import LlamaCpp
from rag_app.engines.native import Model, cores
from rag_app.engines.quoting import QuoteMask, Vocabulary
from rag_app.engines.sampler import Sampler
from rag_app.engines.worker import tokenise
from rag_app.models import locate
from rag_app.prompt import Message, render

RESULTS = Path(__file__).parent / "results" / "engine.json"
ROUNDS = 7
TOKENS = 128
DRAFTS = ((0, 0), (3, 8), (6, 16), (8, 24))
"""Least tokens of a match, and most tokens that are guessed from it."""
TEXT = "\n\n".join(Path(name).read_text("utf-8") for name in ("README.md", "CONTRIBUTING.md"))
STORY = "Write a very long story about a king who had many sons. Tell of each of them."


def rate(times: list[float]) -> float:
    """Items a second between the first and the last."""
    return (len(times) - 1) / (times[-1] - times[0])


def clocked(items: Iterable[Any]) -> tuple[float, list[float]]:
    """When it began, and when each item came."""
    began = time.perf_counter()
    return began, [time.perf_counter() for _ in items]


def summary(runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians of interleaved runs, and the best, by name."""
    return {
        name: {
            key: {
                "median": round(statistics.median(run[key] for run in found), 2),
                "best": round((max if key.endswith("_s") else min)(run[key] for run in found), 2),
            }
            for key in found[0]
        }
        for name, found in runs.items()
    }


def interleaved(kinds: dict[str, Callable[[], dict[str, float]]]) -> dict[str, Any]:
    """Every kind once a round, so that a passing load hits all alike; the first round warms up."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    for number in range(ROUNDS + 1):
        for name, run in kinds.items():
            result = run()
            if number:
                runs[name].append(result)
    return summary(runs)


def segments_of(model: Model, messages: list[Message]) -> list[Batch]:
    """A prompt as the worker reads it."""
    return tokenise(model, render(messages, model.template, model.bos, model.eos))


def raw_llama() -> Any:
    """llama-cpp-python as its documentation uses it, with every core."""
    return llama_cpp.Llama(str(locate()), n_ctx=4096, n_threads=cores(), n_threads_batch=cores(), verbose=False)


def overhead() -> dict[str, Any]:
    """Tokens a second and time to the first token: raw loop, raw completion, our stream; the same prompt."""
    messages = [Message("user", f"{TEXT[:2000]}\n\n{STORY}")]
    llama, ours = raw_llama(), LlamaCpp(decoding=Decoding(max_tokens=TOKENS))
    tokens = [token for batch in segments_of(Model(str(locate()), 4096, True), messages) for token in batch]
    texts: dict[str, str] = {}

    def loop() -> dict[str, float]:
        llama.reset()
        written: list[int] = []

        def generate() -> Iterator[int]:
            for token in llama.generate(tokens, temp=0.0, repeat_penalty=1.0):
                written.append(token)
                yield token
                if len(written) == TOKENS:
                    return

        began, times = clocked(generate())
        texts["loop"] = llama.detokenize(written).decode("utf-8", "replace")
        return {"tokens_per_s": rate(times), "first_token_ms": (times[0] - began) * 1000}

    def completion() -> dict[str, float]:
        llama.reset()
        chunks: list[str] = []
        stream = llama.create_completion(tokens, max_tokens=TOKENS, temperature=0.0, repeat_penalty=1.0, stream=True)
        began, times = clocked(chunks.append(chunk["choices"][0]["text"]) for chunk in stream)
        texts["completion"] = "".join(chunks)
        return {
            "tokens_per_s": (TOKENS - 1) / (times[-1] - times[0]),
            "first_token_ms": (times[0] - began) * 1000,
        }

    def stream() -> dict[str, float]:
        ours.forget()
        began, times, text, written = time.perf_counter(), [], "", 0
        for chunk in ours.stream([(m.role, m.content) for m in messages]):
            if chunk.text:
                times.append(time.perf_counter())
                text += chunk.text
            written += chunk.usage_metadata["output_tokens"] if chunk.usage_metadata else 0
        texts["stream"] = text
        assert written == TOKENS
        return {
            "tokens_per_s": (TOKENS - 1) / (times[-1] - times[0]),
            "first_token_ms": (times[0] - began) * 1000,
        }

    found = interleaved({"loop": loop, "completion": completion, "stream": stream})
    ours.close()
    llama.close()
    best = max(found[name]["tokens_per_s"]["median"] for name in ("loop", "completion"))
    first = min(found[name]["first_token_ms"]["median"] for name in ("loop", "completion"))
    return {
        "prompt_tokens": len(tokens),
        "written": TOKENS,
        **found,
        "same_text": texts["loop"] == texts["stream"],
        "fewer_tokens_per_s_percent": round(100 * (1 - found["stream"]["tokens_per_s"]["median"] / best), 1),
        "later_first_token_ms": round(found["stream"]["first_token_ms"]["median"] - first, 1),
    }


def bot() -> dict[str, Any]:
    """The events of a bot's answer beside the mere stream of the same prompt."""
    from index import build
    from rag_app.bot import Bot

    requests: list[dict[str, Any]] = []

    class Recorded(LlamaCpp):
        def _request(self, *arguments: Any) -> dict[str, Any]:
            requests.append(super()._request(*arguments))
            return requests[-1]

    ours = Recorded(decoding=Decoding(max_tokens=TOKENS, repetition_penalty=1.1))
    with tempfile.TemporaryDirectory() as folder:
        build([Path("README.md")], Path(folder) / "index")
        asked = Bot(ours, Path(folder) / "index")

        def events() -> dict[str, float]:
            ours.forget()
            answer = asked.ask("How is an index built, and what is it good for?")
            spent = answer.timings
            writing = spent["total_ms"] - sum(spent[f"{part}_ms"] for part in ("load", "retrieve", "first_token"))
            return {"tokens_per_s": 1000 * (answer.usage["completion_tokens"] - 1) / writing}

        def stream() -> dict[str, float]:
            ours.forget()
            times, written = [], 0
            for event in ours._line.reply(**requests[-1]):
                times += [time.perf_counter()] if event["event"] == "token" else []
                written = event.get("completion_tokens", 0)
            return {"tokens_per_s": (written - 1) / (times[-1] - times[0])}

        found = interleaved({"events": events, "stream": stream})
    ours.close()
    return found


def batches() -> dict[str, Any]:
    """Prompt tokens read a second, by the most tokens of a batch."""
    model = Model(str(locate()), 4096)
    decoder = Decoder(model, 1, batch=512)
    tokens = model.tokens(TEXT, False)[:1500]

    def reading(size: int) -> Callable[[], dict[str, float]]:
        def read() -> dict[str, float]:
            decoder.forget()
            began = time.perf_counter()
            for _ in decoder.read(cut([(tokens, True)], size)):
                pass
            decoder.logits()
            return {"tokens_per_s": len(tokens) / (time.perf_counter() - began)}

        return read

    return interleaved({str(size): reading(size) for size in (32, 64, 128, 256, 512)})


def follow_up() -> dict[str, Any]:
    """The second question of a conversation: what is read of its prompt."""
    ours = LlamaCpp(decoding=Decoding(max_tokens=40))
    talk = [("system", TEXT[:1500]), ("user", "What is this about?")]
    first = ours.invoke(talk)
    second = ours.invoke([*talk, ("assistant", first.text), ("user", "How is it installed?")])
    ours.close()
    assert first.usage_metadata
    assert second.usage_metadata
    cached = second.usage_metadata["input_token_details"]["cache_read"]
    return {
        "first_prompt": first.usage_metadata["input_tokens"],
        "second_prompt": second.usage_metadata["input_tokens"],
        "reused": cached,
        "read": second.usage_metadata["input_tokens"] - cached,
    }


def prefix() -> dict[str, Any]:
    """Time to the first token with 3,000 tokens before the question that are always the same."""
    model = Model(str(locate()), 4096, True)
    pieces = [TEXT[place : place + 800] for place in range(0, len(TEXT), 800)]
    shots = [Message("system", pieces[0])]
    for number in range(1, len(pieces) - 1, 2):
        shots += [Message("user", pieces[number]), Message("assistant", pieces[number + 1])]
        if sum(map(len, segments_of(model, shots))) > 3000:
            break
    questions = (f"What is said of number {number}, and where?" for number in range(1000))
    llama, ours = raw_llama(), LlamaCpp(decoding=Decoding(max_tokens=1))
    read = {"prompt": 0, "reused": 0}

    def anew() -> dict[str, float]:
        llama.reset()
        tokens = [t for batch in segments_of(model, [*shots, Message("user", next(questions))]) for t in batch]
        began = time.perf_counter()
        next(llama.generate(tokens, temp=0.0, repeat_penalty=1.0))
        return {"first_token_ms": (time.perf_counter() - began) * 1000}

    def stream() -> dict[str, float]:
        prompt = [(m.role, m.content) for m in [*shots, Message("user", next(questions))]]
        began = time.perf_counter()
        for chunk in ours.stream(prompt):
            if chunk.usage_metadata and chunk.usage_metadata["input_tokens"]:
                read["prompt"] = chunk.usage_metadata["input_tokens"]
                read["reused"] = chunk.usage_metadata["input_token_details"]["cache_read"]
            if chunk.text:
                return {"first_token_ms": (time.perf_counter() - began) * 1000}
        raise AssertionError("no token")

    found = interleaved({"anew": anew, "stream": stream})
    ours.close()
    llama.close()
    ratio = found["stream"]["first_token_ms"]["median"] / found["anew"]["first_token_ms"]["median"]
    return {**read, **found, "ratio": round(ratio, 3)}


def quotes() -> dict[str, Any]:
    """A given reply, half of it quoted, written with the mask and without; the tokens are the same."""
    model = Model(str(locate()), 4096)
    decoder, vocabulary = (
        Decoder(model, 1),
        Vocabulary([model.piece(token) for token in range(model.n_vocab)], model.ends),
    )
    sentences = [line for line in TEXT.replace("\n", " ").split(". ") if 60 < len(line) < 160 and '"' not in line][:4]
    passages = [*sentences, *(TEXT[place : place + 1200] for place in range(0, 4800, 1200))]
    reply = " ".join(f'It says that "{s}" and that is what the passage is about, as far as it goes.' for s in sentences)
    prompt = segments_of(model, [Message("user", TEXT[:3000])])
    tokens = model.tokens(reply, False)

    def writing(masked: bool) -> Callable[[], dict[str, float]]:
        def write() -> dict[str, float]:
            for _ in decoder.read(prompt):
                pass
            mask = QuoteMask(vocabulary, passages) if masked else None
            sampler = Sampler(model, asdict(Decoding()), mask=mask)
            began = time.perf_counter()
            for token in tokens:
                sampler.next(decoder.logits())
                sampler.accept(token)
                decoder.write(token)
            return {"tokens_per_s": len(tokens) / (time.perf_counter() - began)}

        return write

    found = interleaved({"off": writing(False), "on": writing(True)})
    share = found["on"]["tokens_per_s"]["median"] / found["off"]["tokens_per_s"]["median"]
    quoted = sum(map(len, sentences)) / len(reply)
    return {"written": len(tokens), "quoted": round(quoted, 2), **found, "cost_percent": round(100 * (1 - share), 1)}


def grammar() -> dict[str, Any]:
    """A step of thought and action, held to its form by a grammar and not."""
    form = 'root ::= "Thought: " [^\\r\\n]{1,300} "\\nAction: " ("search" | "finish") "\\nInput: " [^\\r\\n]{1,160}'
    ours = LlamaCpp(decoding=Decoding(max_tokens=TOKENS))

    def writing(**more: Any) -> Callable[[], dict[str, float]]:
        def write() -> dict[str, float]:
            written, times = 0, []
            for chunk in ours.stream(STORY, **more):
                written += chunk.usage_metadata["output_tokens"] if chunk.usage_metadata else 0
                times += [time.perf_counter()] if chunk.text else []
            return {"tokens_per_s": (written - 1) / (times[-1] - times[0])}

        return write

    found = interleaved({"off": writing(), "on": writing(grammar=form)})
    ours.close()
    return found


def draft(known: list[int], least: int, most: int) -> list[int]:
    """What followed the longest earlier occurrence of the last tokens, where that is of `least` at the least."""
    best, place = 0, 0
    for end in range(len(known) - 2, least - 2, -1):
        same = 0
        while same < 2 * most and end >= same and known[end - same] == known[-1 - same]:
            same += 1
        if same > best:
            best, place = same, end
    return known[place + 1 : place + 1 + min(best, most)] if best >= least else []


def drafting() -> dict[str, Any]:
    """Prompt lookup: guesses copied from the prompt, checked several in a batch; against one by one."""
    model = Model(str(locate()), 4096)
    decoder = Decoder(model, 1)
    text = " ".join(TEXT[400:2400].split())
    prompts = {
        "copies": f"{text}\n\nRepeat the text above word by word.",
        "answers": f"{text}\n\nUsing only the passages above, answer in three long sentences: What is this about?",
        "stories": STORY,
    }

    def check(tokens: list[int]) -> list[int]:
        """The greedy token after each."""
        decoder._batch.fill(tokens, decoder._end, decoder._slot.number, True)
        decoder._batch._logits[: len(tokens)] = 1
        assert llama_cpp.llama_decode(decoder._context, decoder._batch.struct) == 0
        rows = [llama_cpp.llama_get_logits_ith(decoder._context, row) for row in range(len(tokens))]
        return [int(np.ctypeslib.as_array(row, shape=(model.n_vocab,)).argmax()) for row in rows]

    def write(name: str, least: int, most: int) -> tuple[list[int], float]:
        prompt = segments_of(model, [Message("user", prompts[name])])
        for _ in decoder.read(prompt):
            pass
        known = [token for batch in prompt for token in batch]
        start = len(known)
        known.append(int(decoder.logits().argmax()))
        began = time.perf_counter()
        while len(known) - start < TOKENS and known[-1] not in model.ends:
            guesses = draft(known, least, most) if most else []
            found = check([known[-1], *guesses])
            right = next((n for n, guess in enumerate(guesses) if guess != found[n]), len(guesses))
            known += found[: right + 1]
            decoder._end += right + 1
            if guesses:
                llama_cpp.llama_memory_seq_rm(decoder._memory, 0, decoder._end, -1)
        written = known[start : start + TOKENS]
        return written, (len(known) - start - 1) / (time.perf_counter() - began)

    texts: dict[tuple[str, int], list[int]] = {}

    def run(name: str, least: int, most: int) -> Callable[[], dict[str, float]]:
        def once() -> dict[str, float]:
            texts[name, most], speed = write(name, least, most)
            return {"tokens_per_s": speed}

        return once

    result: dict[str, Any] = {}
    for name in prompts:
        found = interleaved({f"{most} after {least}": run(name, least, most) for least, most in DRAFTS})
        plain = found["0 after 0"]["tokens_per_s"]["median"]
        for least, most in DRAFTS[1:]:
            kind = found[f"{most} after {least}"]
            kind["gain"] = round(kind["tokens_per_s"]["median"] / plain, 2)
            kind["same_tokens"] = texts[name, most] == texts[name, 0]
        result[name] = found
    return result


SECTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "overhead": overhead,
    "bot": bot,
    "batches": batches,
    "follow-up": follow_up,
    "prefix": prefix,
    "quotes": quotes,
    "grammar": grammar,
    "drafting": drafting,
}


def main() -> None:
    """Runs the sections named on the command line, or all, and updates the results."""
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    results["machine"] = machine() | {"model": locate().name, "llama-cpp-python": llama_cpp.__version__}
    for name in sys.argv[1:] or SECTIONS:
        results[name] = SECTIONS[name]()
        print(name, json.dumps(results[name], indent=1))
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
