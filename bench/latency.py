"""What a person waits for: the second start of `make chat`, and the first token of an answer.

Run, after `make setup` and a first `make chat`: .venv/bin/python bench/latency.py
"""

import re
import shutil
import statistics
import subprocess
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from rag_app.bot import Bot
from rag_app.engines.llama import LlamaCpp

PORT = 8517


def usable_page() -> float:
    """Seconds from `make chat` to a page that takes a question."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    began = time.perf_counter()
    server = subprocess.Popen(["make", "chat", f"PORT={PORT}"], stdout=subprocess.PIPE, text=True)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            while not any("URL" in line for line in server.stdout or ()):
                continue
            page = browser.new_page()
            page.goto(f"http://localhost:{PORT}")
            page.locator("[data-testid=stChatInputTextArea]:enabled").wait_for()
            return time.perf_counter() - began
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    """Prints medians over five starts and over the questions of the README, each asked twice."""
    questions = re.findall(r'\$ rag-app ask "(.+?)"', Path("README.md").read_text("utf-8"))
    model = LlamaCpp()
    bot = Bot(model)
    began = time.perf_counter()
    bot.load()
    print(f"loading encoder and model: {time.perf_counter() - began:.1f} s")
    answers = []
    for question in questions[:-1] * 2:  # the last one is refused without the model
        model.forget()  # as if nothing had been asked before
        answers.append(bot.ask(question))
    for key in ("retrieve_ms", "first_token_ms", "total_ms"):
        values = [answer.timings[key] for answer in answers]
        print(f"{key}: median {statistics.median(values):.0f}, max {max(values):.0f} ({len(values)} answers)")
    prompts = [answer.usage["prompt_tokens"] for answer in answers]
    print(f"prompt tokens: median {statistics.median(prompts):.0f}; passages: {bot.options.k}")
    bot.model.close()
    starts = [usable_page() for _ in range(5)]
    print(f"make chat to a usable page: {statistics.median(starts):.1f} s (max {max(starts):.1f}, 5 starts)")


if __name__ == "__main__":
    main()
