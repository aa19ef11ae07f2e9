"""What a student learns from a teacher: distances to its distributions, and examples with its answers."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune import methods
from finetune.cli import main
from finetune.commands.distill import _engine
from finetune.compress.distill import Distillation
from finetune.compress.student import StudentTrainer, divergence, prompts
from finetune.compress.teach import objection, teach
from finetune.config import checked
from finetune.errors import DatasetEmpty
from finetune.example import Example, read_examples, write_examples
from finetune.export import gguf
from finetune.training.forward import labelled
from finetune.training.rows import IGNORED, collate, rows, tokens
from finetune.training.train import Steps, arguments
from rag_app.engines.layout import Layout
from rag_app.errors import ServerFailed
from rag_app.models import locate
from rag_app.prompt import NOT_FOUND
from tests.conftest import ScriptedModel
from tests.test_rag_app_engines_server import Fake, fake, say

__all__ = ["fake"]

OKAPI = "The okapi lives in the Ituri rainforest. Its tongue is 45 centimetres long."
LUNCH = "The lunch allowance is 14 euros a day. Requests above it need a manager."


def asked(id: str, question: str, answer: str, *passages: str, **more: Any) -> Example:
    return Example(id, "question_answering", question, answer, passages or (OKAPI,), origin=f"set:{id}", **more)


WHERE = asked("1", "Where does the okapi live?", "in the Ituri rainforest")
LONG = asked("2", "How long is its tongue?", "45 centimetres")
COST = asked("3", "What does lunch cost?", NOT_FOUND, answerable=False)
LIMIT = asked("4", "What is the lunch allowance?", "14 euros a day", LUNCH, part="validation")


def silent(stage: str, done: int, total: int) -> None:
    pass


# --- the divergence


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_divergence_is_that_of_the_library(beta: float, temperature: float) -> None:
    """TRL has it of logits among its experiments, and of hidden states in its trainer; neither multiplies by T²."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.gkd import GKDTrainer
    torch.manual_seed(0)
    states = torch.randn(2, 7, 16)
    heads = torch.randn(2, 50, 16)
    student, teacher = (state @ head.T for state, head in zip(states, heads, strict=True))
    student.requires_grad_(True)
    found = divergence(student, teacher, beta, temperature)
    known = GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, temperature=temperature, reduction="none").sum(
        -1
    )
    chunked, _ = ChunkedDivergenceFunction.apply(
        states[0], heads[0], None, states[1], heads[1], None, beta, temperature
    )
    assert torch.allclose(found, temperature**2 * known, atol=1e-5)
    assert torch.allclose(found, temperature**2 * chunked, atol=1e-4)
    assert torch.allclose(*(torch.autograd.grad(one.sum(), student)[0] / scale
                            for one, scale in ((found, temperature**2), (known, 1))), atol=1e-5)  # fmt: skip


def test_the_divergence_by_hand() -> None:
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
    logits = (q.log()[None] + 3, p.log()[None] - 1)
    kl = 0.5 * torch.tensor(2.0).log() + 0.25 * torch.tensor(0.5).log()
    assert divergence(*logits, 0.0).item() == pytest.approx(kl.item(), abs=1e-6)
    padded = torch.cat([logits[1], torch.tensor([[9.0, 9.0]])], 1)  # a vocabulary padded for the hardware
    assert divergence(logits[0], padded, 0.0).item() == pytest.approx(kl.item(), abs=1e-6)
    m = 0.3 * p + 0.7 * q
    expected = 0.3 * (p * (p / m).log()).sum() + 0.7 * (q * (q / m).log()).sum()
    assert divergence(*logits, 0.3).item() == pytest.approx(expected.item(), abs=1e-6)


def test_prompts_come_back_out_of_a_batch(small_base: Path) -> None:
    layout, config = Layout("", AutoTokenizer.from_pretrained(small_base)), checked({}, "")
    examples = [WHERE, replace(LONG, weight=0.5), replace(LIMIT, part="train")]
    made = rows(tokens(examples, layout, config, []), config)
    assert len(made) == 2  # two share their passage
    batch = collate([row.as_dict() for row in made])
    assert list(prompts(batch)) == [(layout.prompt(one.messages()), one.weight) for one in examples]


# --- a teacher's distributions


def model_of(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()


def distance(student: Any, teacher: Any, layout: Layout) -> float:
    """KL(teacher‖student) over the answers."""
    found = []
    for one in (WHERE, LONG):
        answer = layout.answer(one.answer)
        ids = torch.tensor([[*layout.prompt(one.messages()), *answer]])
        with torch.no_grad():
            both = [model(ids).logits[0, -len(answer) - 1 : -1] for model in (student, teacher)]
        found.append(divergence(both[0], both[1], 0.0))
    return torch.cat(found).mean().item()


@pytest.fixture
def config(small_base: Path, data: Path, tmp_path: Path) -> Path:
    """A student of two layers, and six steps."""
    file = tmp_path / "student.yaml"
    file.write_text(
        f"base_model: {small_base}\noutput_dir: {tmp_path}/out\ndatasets: [{{path: {data}}}]\nmax_steps: 6\n"
        "eval_steps: 6\neval_samples: 0\nlearning_rate: 3e-3\ngradient_accumulation_steps: 1\nuse_tensorboard: false\n"
    )
    return file


@pytest.mark.slow
def test_a_student_comes_nearer_to_a_bigger_model(
    config: Path, base: Path, small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result = run(capsys, config, "--teacher", base, "--temperature", 2, "--cross-entropy", 0.1)
    assert code == 0, result
    told = {"beta": 0.0, "temperature": 2.0, "cross_entropy": 0.1, "on_policy": 0.0, "max_tokens": 64}
    assert (result["teacher"], result["distillation"]) == (str(base), told)
    layout, teacher = Layout("", AutoTokenizer.from_pretrained(small_base)), model_of(base)
    student = methods.load(model_of(small_base), tmp_path / "out" / "adapter")
    assert distance(student, teacher, layout) < 0.9 * distance(model_of(small_base), teacher, layout)


@pytest.mark.slow
def test_an_adapter_teaches_on_what_the_student_writes(
    config: Path, small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both stand on a GGUF file, which is made a folder of for training."""
    file = tmp_path / "base.gguf"
    gguf.write(model_of(small_base), AutoTokenizer.from_pretrained(small_base), file, "f32")
    config.write_text(config.read_text().replace(str(small_base), str(file)))
    assert main(["train", str(config), "--set", f"output_dir={tmp_path}/teacher"]) == 0
    capsys.readouterr()
    flags = ("--teacher", tmp_path / "teacher", "--on-policy", 1, "--max-tokens", 4, "--beta", 0.5)
    code, result = run(capsys, config, *flags, "--set", "learning_rate=1e-3")
    assert code == 0, result
    layout = Layout("", AutoTokenizer.from_pretrained(small_base))
    teacher, student = (methods.load(model_of(small_base), tmp_path / one / "adapter") for one in ("teacher", "out"))
    assert distance(student, teacher, layout) < distance(model_of(small_base), teacher, layout)


@pytest.fixture
def trainer(small_base: Path, tmp_path: Path) -> StudentTrainer:
    """Of a LoRA, towards its own base, always on what it writes."""
    config = checked({"max_steps": 2, "use_tensorboard": False}, "")
    tokenizer = AutoTokenizer.from_pretrained(small_base)
    layout, model = Layout("", tokenizer), methods.attach(model_of(small_base), config, tokenizer)
    made = rows(tokens([WHERE, LONG], layout, config, []), config)
    settings = arguments(config, tmp_path, Steps.of(config, 1), "cpu")
    how = Distillation(on_policy=1.0, max_tokens=5, cross_entropy=0.5)
    return StudentTrainer(model, made, config, settings, tokenizer, teacher=None, how=how, stop=layout.stop())


def test_a_students_own_base_teaches_without_a_second_model(trainer: StudentTrainer) -> None:
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    logits, labels, _ = labelled(trainer.model, batch, torch.bfloat16)
    kept = labels != IGNORED
    losses = trainer.losses(logits, labels, batch)
    own = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none", ignore_index=IGNORED)
    assert torch.allclose(losses, 0.5 * own)  # no distance yet, and half of the usual loss
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    moved, *_ = labelled(trainer.model, batch, torch.bfloat16)
    expected = 0.5 * torch.nn.functional.cross_entropy(moved.float(), labels, reduction="none", ignore_index=IGNORED)
    expected += 0.5 * divergence(moved, logits, 0.0) * kept
    assert torch.allclose(trainer.losses(moved, labels, batch), expected, atol=1e-4)
    assert divergence(moved, logits, 0.0)[kept].min() > 0
    written = {**batch, "written": torch.tensor([True])}
    assert torch.allclose(trainer.losses(moved, labels, written), divergence(moved, logits, 0.0) * kept, atol=1e-4)


def test_on_policy_batches_hold_what_the_student_writes(trainer: StudentTrainer) -> None:
    batch = next(iter(trainer.get_train_dataloader()))
    torch.manual_seed(0)
    (found,), count = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    assert list(prompts(found)) == list(prompts(batch))
    assert count == (found["labels"] != IGNORED).sum()
    assert count <= 2 * 5
    assert found["labels"][found["labels"] != IGNORED].tolist() != batch["labels"][batch["labels"] != IGNORED].tolist()
    torch.manual_seed(1)
    (other,), _ = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    assert not torch.equal(other["labels"][-5:], found["labels"][-5:]) or other["labels"].shape != found["labels"].shape


def test_another_tokenizer_is_refused(
    config: Path, small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    tokenizer = AutoTokenizer.from_pretrained(small_base)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(other)
    (other / "config.json").write_bytes((small_base / "config.json").read_bytes())
    code, result = run(capsys, config, "--teacher", other)
    assert code == 1
    assert "the teacher 'other' has another tokenizer than 'small'" in result["error"]
    assert "--black-box" in result["error"]
    code, result = run(capsys, config, "--teacher", tmp_path / "none")
    assert (code, "none" in result["error"]) == (1, True)
    code, result = run(capsys, config, "--teacher", small_base, "--on-policy", 1, "--set", "adapter=prompt-tuning")
    assert (code, "which adapter prompt-tuning cannot: remove one" in result["error"]) == (1, True)
    assert not (tmp_path / "out").exists()


# --- a teacher's answers


def test_a_teachers_answers_become_examples(tmp_path: Path) -> None:
    teacher = ScriptedModel.saying(
        "<think>Where?</think>The okapi lives in the Ituri rainforest.", "I do not know.", "The documents do not say!"
    )
    out = tmp_path / "taught.jsonl"
    report = teach([WHERE, LIMIT, LONG, COST], teacher, out, silent)
    where, limit, cost = read_examples(out)
    assert where == replace(
        WHERE, answer="The okapi lives in the Ituri rainforest.", references=(WHERE.answer,),
        origin="scripted.gguf on set:1",
    )  # fmt: skip
    assert limit == LIMIT  # held out
    assert cost == replace(COST, origin="scripted.gguf on set:3")
    assert report.as_dict() == {
        "teacher": "scripted.gguf", "asked": 3, "kept": 2, "again": 0, "held_out": 1,
        "dropped": {"not supported by the passages": 1},
    }  # fmt: skip
    assert teacher.prompts == [one.messages() for one in (WHERE, LONG, COST)]
    assert [path.name for path in tmp_path.iterdir()] == ["taught.jsonl"]


STEP = "Thought: I look.\nAction: search\nInput: okapi"
TOOLS = (("search", "finds passages"), ("finish", "ends"))


@pytest.mark.parametrize(
    ("example", "text", "told"),
    [
        (WHERE, "In the Ituri rainforest, where it is safe.", ""),
        (WHERE, "Ituri", ""),  # stands in the passage, as a teacher may know it better
        (WHERE, "In the Congo.", "not supported by the passages"),
        (WHERE, "", "empty"),
        (WHERE, "The documents do not say.", "refused though there is an answer"),
        (COST, "14 euros", "answered though the passages do not say"),
        (COST, NOT_FOUND, ""),
        (replace(WHERE, passages=()), "in the ituri rainforest", ""),
        (replace(WHERE, task="summarization"), "Okapis.", ""),
        (replace(WHERE, task="summarization"), " ", "empty"),
        (replace(WHERE, task="tool_use", tools=TOOLS), STEP, ""),
        (replace(WHERE, task="tool_use", tools=TOOLS), "Hello!", "no step of thought, action and input"),
        (
            replace(WHERE, task="tool_use", tools=TOOLS),
            STEP.replace("search", "fly"),
            "no step of thought, action and input",
        ),
    ],
)
def test_answers_that_are_not_trained_on(example: Example, text: str, told: str) -> None:
    assert objection(example, text) == told
    assert objection(example, text, "length") == "cut at max_tokens"


def test_answers_outlive_the_run_that_asked_for_them(tmp_path: Path) -> None:
    out = tmp_path / "taught.jsonl"
    out.write_text("kept")
    broken = ScriptedModel.saying("in the Ituri rainforest", "")
    broken.replies[1] = ["45 ", ServerFailed("the server is down: start it")]
    with pytest.raises(ServerFailed):
        teach([WHERE, LONG, COST], broken, out, silent)
    assert out.read_text() == "kept"
    journal = tmp_path / ".taught.jsonl.answers"
    with journal.open("a") as stream:
        stream.write('["cut sho')  # killed while it wrote
    whole = ScriptedModel.saying("45 centimetres", NOT_FOUND)
    report = teach([WHERE, LONG, COST], whole, out, silent)
    assert (report.kept, report.again, len(whole.prompts)) == (3, 1, 2)
    assert [one.answer for one in read_examples(out)] == ["in the Ituri rainforest", "45 centimetres", NOT_FOUND]
    other = ScriptedModel.saying("in the Ituri rainforest")
    other.check = lambda: "other.gguf"  # type: ignore[method-assign]
    assert teach([WHERE], other, out, silent).again == 0
    assert not journal.exists()


def test_interrupting_it_loses_no_answer(tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    out, teacher = tmp_path / "taught.jsonl", ScriptedModel.saying("in the Ituri rainforest", "45 centimetres")
    with pytest.raises(KeyboardInterrupt):
        teach([WHERE, LONG], teacher, out, interrupt)
    assert not out.exists()
    assert teach([WHERE, LONG], teacher, out, silent).again == 1


def test_a_teacher_of_no_use_leaves_no_file(tmp_path: Path) -> None:
    out = tmp_path / "taught.jsonl"
    with pytest.raises(DatasetEmpty, match=r"of 1 answers of 'scripted.gguf' none can be used \(1 empty\): give"):
        teach([WHERE], ScriptedModel.saying(""), out, silent)
    with pytest.raises(DatasetEmpty, match="of 0 answers"):
        teach([LIMIT], ScriptedModel.saying(""), out, silent)
    assert not out.exists()


# --- the command


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    code = main(["distill", *map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out or "{}")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_examples([WHERE, LONG, LIMIT], tmp_path / "data.jsonl")
    return tmp_path / "data.jsonl"


@pytest.mark.slow
def test_the_bundled_model_teaches(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, model = tmp_path / "taught.jsonl", locate()
    flags = ("--black-box", "--teacher", model, "--data", data, "--out", out)
    code, report = run(capsys, *flags, "--max-tokens", 48)
    assert (code, report["teacher"], report["asked"], report["held_out"]) == (0, model.name, 2, 1)
    assert report["kept"] + sum(report["dropped"].values()) == 2
    taught = list(read_examples(out))
    assert {one.id for one in taught} >= {"4"}
    assert all(one.origin == f"{model.name} on set:{one.id}" for one in taught if one.part == "train")
    code, report = run(capsys, *flags)
    assert (code, report["error"]) == (
        1, f"'{out}' is there already: name another file, or overwrite it with --force"
    )  # fmt: skip


def test_a_server_teaches(
    fake: Fake, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    fake.acts += [say("in the ", "Ituri rainforest"), say("45 centi", finish="length")]
    out = tmp_path / "taught.jsonl"
    code, report = run(capsys, "--black-box", "--teacher", fake.url, "--data", data, "--out", out, "--max-tokens", 5)
    assert (code, report["kept"], report["dropped"]) == (0, 1, {"cut at max_tokens": 1})
    assert [one.answer for one in read_examples(out)] == ["in the Ituri rainforest", "14 euros a day"]
    asked = [message["content"] for message in fake.sent[0]["messages"]]
    assert asked == [message.content for message in WHERE.messages()]


@pytest.mark.parametrize(
    ("teacher", "engine", "found"),
    [
        ("http://localhost:8080/v1", None, {"engine": "server", "base_url": "http://localhost:8080/v1"}),
        ("qwen", "server", {"model": "qwen"}),
        ("models/q.gguf", None, {"engine": "llama.cpp", "model": "models/q.gguf"}),
        (".", None, {"engine": "transformers", "model": "."}),
        ("Qwen/Qwen3-8B", None, {"engine": "transformers", "model": "Qwen/Qwen3-8B"}),
        ("chats:gpt", None, {"engine": "langchain", "model": "chats:gpt"}),
    ],
)
def test_the_teachers_name_tells_what_runs_it(teacher: str, engine: str | None, found: dict[str, str]) -> None:
    assert _engine(teacher, engine) == found


@pytest.mark.parametrize(
    ("flags", "code", "told"),
    [
        (["--teacher", "t"], 2, "name the student's CONFIG.yaml, or give --black-box"),
        (["--black-box", "--teacher", "t", "--data", "data.jsonl"], 2, "--data FILE, and writes --out FILE: give both"),
        (["--black-box", "--teacher", "t", "--data", "d", "--out", "o", "c.yaml"], 2, "trains nothing: leave out"),
        (["--black-box", "--teacher", "t", "--data", "d", "--out", "o", "--beta", "1"], 2, "leave out --black-box"),
        (["--black-box", "--teacher", "t", "--data", "data.jsonl", "--out", "data.jsonl"], 1, "is what is read"),
        (["--black-box", "--teacher", "t.gguf", "--data", "data.jsonl", "--out", "o"], 1, "t.gguf"),
        (["--black-box", "--teacher", "t.gguf", "--data", "empty.jsonl", "--out", "o"], 1, "holds no example"),
        (["c.yaml", "--teacher", "t", "--out", "o"], 2, "--out is not used so: leave it out, or add --black-box"),
        (["c.yaml", "--teacher", "t", "--temperature", "0"], 2, "temperature is 0.0: give a number above 0"),
        (["c.yaml", "--teacher", "t", "--beta", "1.5"], 2, "beta is 1.5: give a number from 0 to 1"),
        (["c.yaml", "--teacher", "t"], 1, "'c.yaml' cannot be read"),
    ],
)
def test_bad_usage_gets_one_line(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    flags: list[str], code: int, told: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(data.parent)
    Path("empty.jsonl").touch()
    before = data.read_bytes()
    found = run(capsys, *flags)
    assert (found[0], told in found[1]["error"]) == (code, True), found
    assert data.read_bytes() == before
    assert not Path("o").exists()
