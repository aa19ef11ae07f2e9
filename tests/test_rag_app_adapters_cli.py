"""`rag-app adapters` and the gate: what is listed, compared, put to use and refused, for people and for programs."""

import argparse
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from index import build
from rag_app.adapters import gate
from rag_app.adapters.registry import Registry, State, Use
from rag_app.adapters.state import shown
from rag_app.answer import Answer
from rag_app.bot import Bot
from rag_app.cli import main
from rag_app.commands import flags
from rag_app.engines.checkpoints import find
from rag_app.errors import AdapterInvalid, AdapterWorse
from rag_app.evaluate import Evaluation, Result
from rag_app.fingerprint import fingerprint
from rag_app.questions import Question
from tests.conftest import ScriptedModel, WordEncoder
from tests.test_layers import HEAVY, _loaded_by
from tests.test_rag_app_adapters_registry import exported, gguf, kept, names, tiny, trained

pytestmark = pytest.mark.usefixtures("nothing_bundled")

__all__ = ["kept", "tiny"]
Capture = pytest.CaptureFixture[str]
LUNCH, OIL, DINNER = "What is the lunch allowance?", "When to change the oil?", "Who pays for the lunch?"
ROWS = [
    {"question": LUNCH, "answer": "14 euros", "source_file": "lunch.txt"},
    {"question": OIL, "answer": "every 7500 kilometres", "source_file": "engine.html"},
    {"question": DINNER, "answer": None},
]
NO = "The documents do not say."
TOLD: dict[str, tuple[str | Exception, ...]] = {
    "off": ("14 euros", "No idea", "Ann does"),
    "a": ("14 euros", "every 7500 kilometres", "Ann does"),
    "b": ("No idea", "No idea", NO),
    "c": ("No idea", "No idea", "Ann does"),
    "a,b:0.5": ("14 euros", "every 7500 kilometres", NO),
}


class Adapted(ScriptedModel):
    """Answers each question as it is told for the adapters that it gets, in the order of ROWS."""

    engine = "llama.cpp"
    abilities = frozenset({"adapters"})

    def __init__(self, base: Path) -> None:
        super().__init__()
        self._base, self.used, self.closings = find(str(base)), list[str](), 0

    def check(self) -> str:
        return self._base.name

    def fingerprint(self) -> str:
        return fingerprint(self._base)

    def adapter(self, entry: Any) -> str:
        if entry.gguf is None:
            raise AdapterInvalid(f"'{entry.name}' has no adapter.gguf: rag-finetune export RUN --to gguf-lora")
        return str(entry.gguf)

    def stream(self, input: Any, config: Any = None, *, stop: Any = None, **kwargs: Any) -> Iterator[Any]:
        uses = tuple(Use(Path(path).parent.name, weight) for path, weight in kwargs.get("adapters", ()))
        self.used.append(shown(uses))
        asked = input[-1][1]
        reply = TOLD[self.used[-1]][[row["question"] in asked for row in ROWS].index(True)]
        if isinstance(reply, BaseException):
            raise reply
        self.replies = [[reply]]
        yield from super().stream(input, config, stop=stop, **kwargs)

    def close(self) -> None:
        self.closings += 1


@pytest.fixture(scope="module")
def words(facts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("words") / "index"
    build([facts], directory, encoder=WordEncoder())
    return directory


@pytest.fixture
def model(tiny: Path, words: Path, monkeypatch: pytest.MonkeyPatch) -> Adapted:
    """In place of the engine; index and encoder are small, too."""
    model = Adapted(tiny)

    def make(options: argparse.Namespace) -> tuple[Bot, Adapted]:
        assert str(options.index) == str(words)
        return Bot(model, options.index, WordEncoder(), flags.settings(options).answer), model  # type: ignore[arg-type]

    monkeypatch.setattr(flags, "make_bot", make)
    return model


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def run(*arguments: object) -> int:
    return main(["adapters", *map(str, arguments)])


@pytest.fixture
def measured(words: Path, data: Path) -> tuple[object, ...]:
    return ("--data", data, "--index", words, "--min-confidence", "0")


def as_json(capsys: Capture) -> Any:
    return json.loads(capsys.readouterr().out)


def test_the_help_loads_no_library() -> None:
    code = "from rag_app.cli import main\ntry:\n    main(['adapters', 'use', '--help'])\nexcept SystemExit:\n    pass"
    assert not _loaded_by(code) & HEAVY


def test_what_only_looks_loads_no_torch(kept: Registry) -> None:
    made = kept.get("a").folder
    code = (
        "from rag_app.cli import main\n"
        f"assert main(['adapters', 'add', {str(made)!r}, '--name', 'd']) == 0\n"
        "assert main(['adapters', 'list']) == main(['adapters', 'show', 'd']) == main(['adapters', 'off']) == 0"
    )
    assert not _loaded_by(code) & {"torch", "transformers", "llama_cpp", "faiss"}
    assert kept.names() == ["a", "b", "c", "d"]


def test_adapters_are_added_listed_shown_and_removed(tmp_path: Path, tiny: Path, capsys: Capture) -> None:
    assert run("list") == 0
    printed = capsys.readouterr()
    assert printed.out == "in use: off (as the program came)\n"
    assert "there are no adapters yet: 'rag-app adapters add RUN' takes one in" in printed.err
    trained(tmp_path / "Tax", tiny)
    exported(tmp_path / "Tax" / "export" / "gguf-lora", tiny, "tax")
    assert run("add", tmp_path / "Tax") == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("added: tax (lora r=2 for tiny.gguf, gguf and peft, 0.0 MB)")
    assert "'rag-app adapters use tax' puts it to use" in printed.err
    assert "llama.cpp needs" not in printed.err
    assert run("add", trained(tmp_path / "alone", tiny)) == 0
    assert "llama.cpp needs adapter.gguf, too: 'rag-finetune export RUN --to gguf-lora'" in capsys.readouterr().err
    assert run("remove", "alone") == 0
    assert run("add", tmp_path / "Tax", "--name", "x", "--base", "none.gguf") == 1
    assert "give another with --base" in capsys.readouterr().err.lower()
    assert run("add", tmp_path / "Tax") == 1
    assert "there is an adapter 'tax' already: replace it with --force, or give --name" in capsys.readouterr().err
    assert run("add", tmp_path / "Tax", "--force", "--json") == 0
    assert as_json(capsys)["forms"] == ["gguf", "peft"]
    assert run("add", gguf(tmp_path / "bare.gguf"), "--base", tiny, "--name", "other", "--json") == 0
    assert as_json(capsys)["base"]["name"] == "tiny.gguf"
    Registry().use([Use("tax")])
    os.truncate(Registry().root / "other" / "adapter.gguf", 9)
    assert run("list") == 0
    assert capsys.readouterr().out.splitlines() == [
        "  other  the adapter 'other' is damaged (adapter.gguf is 9 of 512 bytes): add it again with --force",
        "* tax    lora r=2 for tiny.gguf, gguf and peft, 0.0 MB",
        "in use: tax",
    ]
    assert run("list", "--json") == 0
    rows = as_json(capsys)
    assert (rows["active"], rows["chosen"]) == ([{"name": "tax", "weight": 1.0}], True)
    assert [(row["name"], row["in_use"]) for row in rows["adapters"]] == [("other", None), ("tax", 1.0)]
    assert run("show", "tax") == 0
    out = capsys.readouterr().out
    assert "in use: 1.0\n" in out and "made: 2026-02-03T04:05:06+0000" in out and "  adapter.gguf\n" in out
    assert run("show", "tax", "--json") == 0
    assert as_json(capsys)["config"] == {"base_model": str(tiny)}
    assert run("show", "none") == 1 and "there is no adapter 'none': there are other, tax" in capsys.readouterr().err
    assert run("remove", "tax") == 1
    assert "'tax' is in use: 'rag-app adapters off' or 'use OTHER' first" in capsys.readouterr().err
    assert run("off", "--json") == 0 and as_json(capsys) == {"active": [], "chosen": True}
    assert run("remove", "tax") == 0 and capsys.readouterr().out == "removed: tax\n"
    assert run("remove", "other", "--json") == 0 and as_json(capsys) == {"removed": "other"}
    assert Registry().names() == []


def test_rollback_goes_back_and_tells_what_it_passes_over(kept: Registry, capsys: Capture) -> None:
    for name in "abc":
        kept.use([Use(name)])
    kept.remove("b")
    assert run("rollback") == 0
    printed = capsys.readouterr()
    assert printed.out == "in use: a\n"
    assert "1 states were passed over, since their adapters are gone" in printed.err
    assert run("rollback", "--json") == 0 and as_json(capsys) == {"active": [], "chosen": False}
    assert run("rollback") == 1
    assert "nothing was in use before: 'rag-app adapters use NAME' chooses" in capsys.readouterr().err


def test_settings_that_go_before_what_is_in_use_are_told(kept: Registry, capsys: Capture) -> None:
    for settings, told in (('[answer]\nadapter = "b"\n', 'says adapter = "b", which goes before this'), ("[", "")):
        (kept.root.parent / "config.toml").write_text(settings)
        for command in ("list", "off", "rollback"):
            Registry().use([Use("a")])
            assert run(command) == 0
            err = capsys.readouterr().err
            assert told in err and err.count("\n") == bool(told)


def test_a_better_one_is_put_to_use_and_both_scores_are_kept(
    kept: Registry, model: Adapted, measured: tuple[object, ...], capsys: Capture
) -> None:
    assert run("use", "a", *measured) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["adapter", "F1"]
    assert lines[1].split()[:2] == ["off", "0.333"] and lines[2].split()[:2] == ["a", "0.667"]
    assert "+0.333  +0.000 to +1.000" in lines[2]
    assert lines[3] == "in use: a"
    assert model.used == ["off"] * 3 + ["a"] * 3 and model.closings == 1
    (result,) = kept.show("a")["scores"]["gate"]
    assert (result["against"], round(result["f1"], 3), round(result["against_f1"], 3)) == ("off", 0.667, 0.333)
    assert (result["n"], result["taken"], result["questions"]) == (3, True, str(measured[1]))
    assert run("show", "a") == 0
    assert "a F1 0.667, off 0.333, 3 questions of" in capsys.readouterr().out


def test_a_worse_one_is_refused_unless_forced(
    kept: Registry, model: Adapted, measured: tuple[object, ...], capsys: Capture
) -> None:
    kept.use([Use("a")])
    assert run("use", "b", *measured, "--json") == 1
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert (result["active"], result["gate"]["against"], result["gate"]["taken"]) == (
        [{"name": "a", "weight": 1.0}],
        "a",
        False,
    )
    assert (
        "'b' answers worse than 'a', which is in use: F1 0.333 against 0.667 (-0.333, 95% interval" in result["error"]
    )
    assert "use it all the same with --force" in printed.err and printed.err.count("\n") == 1
    assert run("show", "b") == 0 and "of " + str(measured[1]) + "; not put to use" in capsys.readouterr().out
    assert run("use", "b", *measured, "--force", "--json") == 0
    assert as_json(capsys)["gate"]["difference"] == pytest.approx(-1 / 3)
    assert shown(kept.in_use().active) == "b"
    assert [row["taken"] for row in kept.show("b")["scores"]["gate"]] == [False, True]


def test_as_good_is_good_enough_and_the_same_is_not_measured(
    kept: Registry, model: Adapted, measured: tuple[object, ...]
) -> None:
    assert run("use", "b", *measured) == 0  # one right of three, as without
    used = len(model.used)
    assert run("use", "b:1", *measured, "--json") == 0
    assert len(model.used) == used


def test_several_with_weights_are_measured_together(
    kept: Registry, model: Adapted, measured: tuple[object, ...], capsys: Capture
) -> None:
    kept.use([Use("a")])
    assert run("use", "a", "b:0.5", *measured, "--json") == 0
    result = as_json(capsys)
    assert (result["gate"]["adapter"], result["gate"]["f1"]) == ("a,b:0.5", 1.0)
    assert result["active"] == [{"name": "a", "weight": 1.0}, {"name": "b", "weight": 0.5}]
    assert kept.show("b")["scores"]["gate"] == kept.show("a")["scores"]["gate"] == [result["gate"]]


def test_force_alone_asks_nothing(kept: Registry, model: Adapted, words: Path, capsys: Capture) -> None:
    assert run("use", "c", "--force", "--index", words, "--json") == 0
    assert as_json(capsys) == {"active": [{"name": "c", "weight": 1.0}], "chosen": True, "gate": None}
    assert model.used == [] and model.closings == 1


def test_the_questions_that_an_adapter_brings_are_asked(
    kept: Registry, model: Adapted, words: Path, data: Path, capsys: Capture, tmp_path: Path, tiny: Path
) -> None:
    assert run("use", "a", "--index", words) == 1
    assert "'a' brings no questions to be measured with: give labelled ones with --data" in capsys.readouterr().err
    assert kept.in_use() == State() and model.used == []
    folder = exported(tmp_path / "with", tiny)
    (folder / "complete.json").unlink()
    (folder / "heldout.jsonl").write_bytes(data.read_bytes())
    kept.add(folder, "a", replace=True)
    assert run("use", "a", "--index", words, "--min-confidence", "0", "--limit", "2", "--json") == 0
    result = as_json(capsys)["gate"]
    assert result["questions"] == str(kept.root / "a" / "heldout.jsonl") and result["n"] == 2


REFUSED_AT_ONCE = {
    "an unknown name": (["x"], "there is no adapter 'x': there are a, b, c"),
    "no adapter": (["off"], "name an adapter: 'rag-app adapters off' gives the base model back"),
    "a weight that is none": (["a:much"], "the weight of 'a' is 'much': give a number, as in a:0.5"),
    "another base": (["other"], "'other' was trained on 'other.gguf' .*, and 'tiny.gguf' .* has other weights"),
    "no form": (["plain"], "'plain' has no adapter.gguf: rag-finetune export RUN --to gguf-lora"),
    "a flag of other commands": (["a", "--adapter", "b"], "adapters are named without --adapter here: leave it out"),
    "damage": (["c"], "the adapter 'c' is damaged .adapter.gguf has changed since it was written.: add it again"),
    "no such file": (["a", "--data", "none.jsonl"], "none.jsonl"),
}


@pytest.mark.parametrize(("arguments", "phrase"), REFUSED_AT_ONCE.values(), ids=REFUSED_AT_ONCE)
def test_what_cannot_be_used_is_refused_before_anything_is_asked(
    arguments: list[str],
    phrase: str,
    kept: Registry,
    model: Adapted,
    measured: tuple[object, ...],
    capsys: Capture,
    tmp_path: Path,
    tiny: Path,
) -> None:
    other = gguf(tmp_path / "other.gguf", {"blk.0.attn_q.weight": (8, 16)}, **{"general.type": "model"})
    kept.add(exported(tmp_path / "other", other), "other")
    kept.add(trained(tmp_path / "plain", tiny))
    file = kept.root / "c" / "adapter.gguf"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert run("use", *measured, *arguments) in (1, 2)
    line = capsys.readouterr().err
    assert re.search(phrase, line) and line.count("\n") == 1
    assert model.used == [] and kept.in_use() == State()


def test_an_engine_without_adapters_refuses_them(
    kept: Registry, model: Adapted, measured: tuple[object, ...], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(Adapted, "abilities", frozenset())
    assert run("use", "a", *measured) == 1
    assert "the engine 'llama.cpp' takes no adapters" in capsys.readouterr().err


def test_ctrl_c_changes_nothing(
    kept: Registry, model: Adapted, measured: tuple[object, ...], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    for told in ((KeyboardInterrupt(), "", ""), ("14 euros", KeyboardInterrupt(), "")):
        monkeypatch.setitem(TOLD, "a", told)  # type: ignore[arg-type]
        assert run("use", "a", *measured) == 130
        assert "interrupted: nothing was changed; run it again to measure anew" in capsys.readouterr().err
    assert kept.in_use() == State() and names(kept.root) == {"a", "b", "c", ".lock"}
    assert model.closings == 2


def test_questions_that_fail_count_as_wrong_and_all_of_them_as_a_failure(
    kept: Registry, model: Adapted, measured: tuple[object, ...], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    failed = AdapterInvalid("it does not fit")
    monkeypatch.setitem(TOLD, "a", ("14 euros", "every 7500 kilometres", failed))
    assert run("use", "a", *measured) == 0
    assert "question 3 failed with 'a': it does not fit" in capsys.readouterr().err
    monkeypatch.setitem(TOLD, "b", (failed, failed, failed))
    assert run("use", "b", *measured) == 1
    assert "every question failed with 'b'; the first: it does not fit" in capsys.readouterr().err
    assert shown(kept.in_use().active) == "a"


def test_questions_of_other_documents_and_without_answers_decide_nothing(
    kept: Registry, model: Adapted, measured: tuple[object, ...], data: Path, capsys: Capture
) -> None:
    data.write_text(json.dumps({**ROWS[0], "source_file": "elsewhere.txt"}) + "\n")
    assert run("use", "a", *measured) == 1
    line = capsys.readouterr().err
    assert "the index holds nothing of what the questions rest on" in line and "--corpus or --index" in line
    data.write_text(json.dumps({"question": LUNCH}) + "\n")
    assert run("use", "a", *measured) == 1
    assert (
        "no question says what is right, so nothing can be compared: give others with --data" in capsys.readouterr().err
    )
    assert kept.in_use() == State()


def test_what_is_in_use_but_does_not_fit_is_not_compared_with(
    kept: Registry, model: Adapted, measured: tuple[object, ...], capsys: Capture, tmp_path: Path
) -> None:
    other = gguf(tmp_path / "other.gguf", {"blk.0.attn_q.weight": (8, 16)}, **{"general.type": "model"})
    kept.add(exported(tmp_path / "other", other), "other")
    kept.use([Use("other")])
    assert run("use", "a", *measured, "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["gate"]["against"] == "off"
    assert "what is in use is not compared with" in printed.err and "has other weights" in printed.err


def test_a_damaged_state_is_compared_with_the_base_and_mended(
    kept: Registry, model: Adapted, measured: tuple[object, ...], capsys: Capture
) -> None:
    (kept.root / "active.json").write_text("{")
    assert run("list") == 1 and "active.json' is damaged: 'rag-app adapters use NAME'" in capsys.readouterr().err
    assert run("use", "c", *measured, "--json") == 1
    assert "'c' answers worse than 'off'" in as_json(capsys)["error"]
    assert run("use", "a", *measured, "--json") == 0
    printed = capsys.readouterr()
    assert "active.json' is damaged" in printed.err and json.loads(printed.out)["gate"]["against"] == "off"
    assert shown(kept.in_use().active) == "a"


def test_several_are_compared_in_one_table(
    kept: Registry, model: Adapted, measured: tuple[object, ...], capsys: Capture
) -> None:
    assert run("compare", "off", "a", "a,b:0.5", *measured) == 0
    rows = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert rows == [["adapter", "F1"], ["off", "0.333"], ["a", "0.667"], ["a,b:0.5", "1.000"]]
    assert run("compare", "b", "base", *measured, "--json") == 0
    first, second = as_json(capsys)["adapters"]
    assert (first["adapter"], second["adapter"]) == ("b", "off")
    assert first["difference"] == {"value": 0, "interval": [0, 0], "n": 3} and second["difference"]["value"] == 0
    assert second["intervals"]["answers"]["f1"] and first["refusal"]["recall"] == 1
    assert kept.in_use() == State() and names(kept.root) == {"a", "b", "c", ".lock"}
    assert run("compare", "off", "--index", measured[3]) == 1
    assert "there are no questions to compare them on: give labelled ones with --data FILE" in capsys.readouterr().err


def test_the_gate_tells_differences_with_paired_intervals() -> None:
    questions = [Question(str(n), f"{n}?", ("x",), True) for n in range(40)]

    def done(name: str, scores: list[float]) -> gate.Measured:
        results = [Result(q, Answer(q.question), 0.0, em=s, f1=s) for q, s in zip(questions, scores, strict=True)]
        return gate.Measured(name, Evaluation(results), Evaluation(results).report())

    hard = [float(n % 2) for n in range(40)]  # half of the questions are hard for both
    one, two = done("one", hard), done("two", [max(s, 0.0) - 0.1 * (s > 0) for s in hard])
    found = gate.difference(one, two)
    assert found.value == pytest.approx(-0.05) and found.n == 40
    assert found.interval and -0.07 < found.interval[0] < found.interval[1] < -0.03  # unpaired, it would be 0.3 wide
    with pytest.raises(AdapterWorse, match=r"'two' answers worse than 'one'.*F1 0.450 against 0.500 .-0.050, 95%"):
        gate.check(one, two)
    assert gate.check(two, one).value == pytest.approx(0.05)
    assert gate.check(one, done("three", hard[::-1])).value == 0
