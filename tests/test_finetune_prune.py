"""What pruning takes away, what stays zero, what is kept on disk, and what is refused."""

import copy
import json
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune.cli import main
from finetune.compress import depth, sparse
from finetune.compress.student import divergence
from finetune.errors import MethodInvalid
from finetune.evaluation import perplexity
from finetune.example import Example, write_examples
from index import folders
from rag_app.engines.layout import Layout

TEXTS = (
    "The okapi lives in the Ituri rainforest. Its tongue is 45 centimetres long.",
    "The axolotl keeps its gills for life. It lives in Lake Xochimilco near Mexico City.",
    "Change the oil every 7500 kilometres, and the filter every second time.",
    "The lunch allowance is 14 euros a day. Requests above it need a manager.",
)
ASKED = (
    ("Where does the okapi live?", "in the Ituri rainforest"),
    ("Where does the axolotl live?", "in Lake Xochimilco"),
    ("When is the oil changed?", "every 7500 kilometres"),
    ("What is the lunch allowance?", "14 euros a day"),
)


def silent(stage: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def tokenizer(small_base: Path) -> Any:
    return AutoTokenizer.from_pretrained(small_base)


@pytest.fixture(scope="module")
def loaded(small_base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(small_base, dtype=torch.float32).eval()


@pytest.fixture
def model(loaded: Any) -> Any:
    return copy.deepcopy(loaded)


@pytest.fixture(scope="module")
def rows(tokenizer: Any) -> list[list[int]]:
    return [tokenizer(text).input_ids for text in TEXTS]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight examples; those of two documents are held out."""
    file = tmp_path / "data.jsonl"
    examples = [
        Example(
            f"{place}{again}", "question_answering", question, answer, (TEXTS[place],), document=str(place),
            part="validation" if place == 3 else "train",
        )
        for again in "ab" for place, (question, answer) in enumerate(ASKED)
    ]  # fmt: skip
    write_examples(examples, file)
    return file


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers never stop by themselves."""
    monkeypatch.setattr("finetune.compress.prune.MAX_TOKENS", 4)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    code = main(["prune", *map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out or "{}")


# --- single weights


def lowest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Independently of the code: a mask of the `count` lowest scores of each row."""
    order = scores.sort(dim=1).indices[:, :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, torch.ones_like(order, dtype=torch.bool))


def inputs_of(model: Any, linear: Any, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """All that a linear layer reads while the whole model runs: (tokens, width)."""
    read: list[torch.Tensor] = []
    hook = linear.register_forward_hook(lambda _, inputs, __: read.append(inputs[0][0]))
    with torch.no_grad():
        for row in rows:
            model(input_ids=torch.tensor([row]))
    hook.remove()
    return torch.cat(read)


@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"])
def test_wanda_is_the_formula_behind_layers_that_are_pruned(
    model: Any, loaded: Any, rows: list[list[int]], name: str
) -> None:
    sparse.wanda(model, rows, 0.5, None, silent)
    behind = copy.deepcopy(loaded)
    behind.model.layers[0].load_state_dict(model.model.layers[0].state_dict())  # pruned, the second layer still whole
    for layer, whole in ((0, loaded), (1, behind)):
        linear = whole.model.layers[layer].get_submodule(name)
        scores = linear.weight.abs() * inputs_of(whole, linear, rows).norm(dim=0)
        pruned = model.model.layers[layer].get_submodule(name).weight
        mask = lowest(scores, linear.in_features // 2)
        assert ((pruned == 0) == mask).float().mean() > 0.9999  # ties and rounding of sums
        assert torch.equal(pruned[pruned != 0], linear.weight[pruned != 0])


def test_sparsity_is_exact(model: Any, loaded: Any, rows: list[list[int]]) -> None:
    sparse.wanda(model, rows, 0.3, None, silent)
    for linear in sparse.linears(depth.layers(model)).values():
        assert (linear.weight == 0).sum(1).unique().tolist() == [round(0.3 * linear.in_features)]
    sparse.magnitude(other := copy.deepcopy(loaded), 0.3)
    for name, linear in sparse.linears(depth.layers(other)).items():
        gone = linear.weight == 0
        assert gone.sum() == round(0.3 * gone.numel())
        whole = depth.layers(loaded).get_submodule(name).weight.abs()
        assert whole[gone].max() <= whole[~gone].min()
    assert torch.equal(other.lm_head.weight, loaded.lm_head.weight)


def test_two_of_four_consecutive_inputs_go(model: Any, loaded: Any, rows: list[list[int]]) -> None:
    sparse.wanda(model, rows, 0.5, 4, silent)
    for name, linear in sparse.linears(depth.layers(model)).items():
        zeros, before = (
            (one.weight.view(-1, 4) == 0).sum(1) for one in (linear, depth.layers(loaded).get_submodule(name))
        )
        assert torch.equal(zeros, before.clamp(min=2))  # a few weights are zero without pruning


def test_wanda_costs_less_than_magnitude(base: Path, tokenizer: Any) -> None:
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    by_magnitude, by_wanda = copy.deepcopy(whole), copy.deepcopy(whole)
    sparse.magnitude(by_magnitude, 0.5)
    sparse.wanda(by_wanda, [tokenizer(text).input_ids for text in TEXTS[:3]], 0.5, None, silent)
    found = [perplexity.of_texts(one, tokenizer, TEXTS[3:]) for one in (whole, by_wanda, by_magnitude)]
    assert found == sorted(found)
    assert found[0] < found[1] < found[2]


def test_quantised_weights_are_not_pruned(model: Any) -> None:
    sparse.check(model, 4)
    model.model.layers[0].mlp.up_proj = torch.nn.Linear(5, 3)
    with pytest.raises(MethodInvalid, match=r"'0.mlp.up_proj' has 5 inputs, no groups of 4: give a share"):
        sparse.check(model, 4)
    model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), False)
    with pytest.raises(MethodInvalid, match=r"'0.mlp.up_proj' are quantised: prune a 16-bit model"):
        sparse.check(model, None)


def test_zeros_get_no_gradient(model: Any, rows: list[list[int]]) -> None:
    sparse.magnitude(model, 0.5)
    weight = model.model.layers[1].mlp.up_proj.weight
    mask, optimizer = weight == 0, torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.1)
    before = weight.detach().clone()
    with sparse.kept(model):
        for row in rows[:2]:
            model(input_ids=torch.tensor([row]), labels=torch.tensor([row])).loss.backward()
            optimizer.step()
    assert torch.equal(weight == 0, mask)
    assert not torch.equal(weight, before)
    model(input_ids=torch.tensor(rows[:1]), labels=torch.tensor(rows[:1])).loss.backward()
    assert weight.grad[mask].any()  # afterwards it is a model like any other


# --- whole layers


@pytest.fixture
def deeper(model: Any) -> Any:
    """Four layers; the third one, number 2, changes nothing, and number 1 little."""
    model.model.layers.extend(copy.deepcopy(model.model.layers))
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = number
    model.config.num_hidden_layers = 4
    for number, scale in ((1, 0.01), (2, 0.0)):
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            model.model.layers[number].get_submodule(name).weight.data *= scale
    return model


def test_influence_is_the_formula(deeper: Any, rows: list[list[int]]) -> None:
    found = depth.influences(deeper, rows, silent)
    with torch.no_grad():
        states = [deeper.model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states for row in rows]
    for number in range(3):  # the last of the hidden states that a model returns is normalised already
        pairs = [(one[number][0], one[number + 1][0]) for one in states]
        cosines = torch.cat([(a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)) for a, b in pairs])
        assert found[number] == pytest.approx(1 - cosines.mean().item(), abs=1e-5)
    assert found[2] == pytest.approx(0, abs=1e-6)
    assert depth.least(found, 1) == [2]
    assert depth.least(found, 2) == [1, 2]


def test_the_block_that_turns_the_last_state_least(deeper: Any, rows: list[list[int]]) -> None:
    found = depth.distances(deeper, rows, 2, silent)
    assert len(found) == 3
    assert depth.least(found, 1) == [1]
    with torch.no_grad():
        states = [deeper.model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states for row in rows]
    turned = [torch.nn.functional.cosine_similarity(one[0][0, -1], one[2][0, -1], dim=0).arccos() for one in states]
    assert found[0] == pytest.approx(sum(turned).item() / len(rows) / torch.pi, abs=1e-5)


def test_a_layer_that_does_nothing_is_not_missed(
    deeper: Any, rows: list[list[int]], tokenizer: Any, tmp_path: Path
) -> None:
    deeper.config.layer_types = ["full_attention"] * 4
    with torch.no_grad():
        before = deeper(input_ids=torch.tensor([rows[0]])).logits
    depth.remove(deeper, [2])
    deeper.save_pretrained(tmp_path)
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float32)
    assert not any(report.values())
    assert again.config.num_hidden_layers == len(again.config.layer_types) == 3
    with torch.no_grad():
        assert torch.allclose(again(input_ids=torch.tensor([rows[0]])).logits, before, atol=1e-4)
    asked = tokenizer(TEXTS[0], return_tensors="pt")
    assert again.generate(**asked, max_new_tokens=3, do_sample=False).shape[1] == len(rows[0]) + 3  # its cache fits


def test_layers_have_to_be_left_and_found(model: Any) -> None:
    with pytest.raises(MethodInvalid, match="has 2 layers, and none would be left: remove 1 at most"):
        depth.remove(model, [0, 1])
    del model.model.layers[1]
    with pytest.raises(MethodInvalid, match="type 'llama' cannot be pruned"):
        depth.layers(model)


# --- the command


def test_weights_are_pruned_and_distilled_back(
    small_base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pruned"
    code, report = run(
        capsys, small_base, "--out", out, "--data", data, "--method", "magnitude", "--sparsity", 0.7, "--distill", 5
    )
    assert code == 0
    assert json.loads((out / "prune.json").read_text()) == report
    assert folders.whole(out) == ""
    before, pruned, distilled = (report["stages"][name] for name in ("before", "pruned", "distilled"))
    kept, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    linear = sum(one.weight.numel() for one in sparse.linears(depth.layers(kept)).values())
    assert before["zeros"] < pruned["zeros"] == distilled["zeros"] == sparse.zeros(kept)
    assert pruned["zeros"] == pytest.approx(0.7 * linear, abs=14)  # rounded once for each matrix
    assert before["parameters"] == distilled["parameters"]
    # Towards the teacher, that is: two layers of thirty know no words, whatever their perplexity is.
    whole = AutoModelForCausalLM.from_pretrained(small_base)
    cut = AutoModelForCausalLM.from_pretrained(small_base)
    sparse.magnitude(cut, 0.7)
    assert 0 < distance(kept, whole, tokenizer) < distance(cut, whole, tokenizer)
    Layout("kept", tokenizer)  # it has its chat template
    code, report = run(capsys, out, "--out", out, "--data", data, "--force")
    assert (code, "is what is read, and would be lost" in report["error"]) == (1, True)


def distance(model: Any, whole: Any, tokenizer: Any) -> float:
    layout, found = Layout("", tokenizer), 0.0
    for place, (question, answer) in enumerate(ASKED):
        example = Example("", "question_answering", question, answer, (TEXTS[place],))
        ids = torch.tensor([[*layout.prompt(example.messages()), *layout.answer(answer)]])
        with torch.no_grad():
            found += divergence(model(ids).logits[0, -8:], whole(ids).logits[0, -8:], 0.0).mean().item()
    return found


def test_layers_are_removed_and_the_file_is_smaller(
    small_base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shallow"
    code, report = run(capsys, small_base, "--out", out, "--data", data, "--layers", 1)
    assert code == 0
    assert (report["method"], len(report["removed"]), len(report["effect"])) == ("layers", 1, 2)
    assert report["effect"][report["removed"][0]] == min(report["effect"])
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 1
    before, pruned = report["stages"]["before"], report["stages"]["pruned"]
    assert before["bytes"] > pruned["bytes"]
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (small_base, out)]
    assert sizes[0] - sizes[1] == pytest.approx(before["bytes"] - pruned["bytes"], abs=4096)


@pytest.mark.parametrize(
    ("flags", "code", "told"),
    [
        (["--sparsity", "1.2"], 2, "sparsity is 1.2: give a number above 0 and below 1, or 2:4"),
        (["--sparsity", "0"], 2, "sparsity is 0.0"),
        (["--sparsity", "nan"], 2, "sparsity is nan"),
        (["--sparsity", "half"], 2, "--sparsity is 'half': give a number"),
        (["--sparsity", ""], 2, "--sparsity is '': give a number"),
        (["--out", "one.jsonl/model"], 1, "'one.jsonl/model' cannot be written, as"),
        (["--method", "layers"], 2, "removes 0 layers: give --layers 1 or more"),
        (["--method", "wanda", "--layers", "1"], 2, "give --sparsity with wanda"),
        (["--method", "block", "--sparsity", "0.5"], 2, "give --layers with block"),
        (["--distill", "-1"], 2, "distill is -1"),
        (["--layers", "2"], 1, "has 2 layers, and none would be left: remove 1 at most"),
        (["--data", "empty.jsonl"], 1, "'empty.jsonl' holds no example"),
        (["--data", "one.jsonl"], 1, "there is no example to measure: give a file with more of them"),
        (["--out", "taken"], 1, "'taken' is there already: name another folder, or replace it with --force"),
        (["--out", "taken", "--force"], 1, "'taken' holds what is none of ours, and would be lost"),
    ],
)
def test_bad_usage_gets_one_line(
    small_base: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    code: int,
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").touch()
    Path("one.jsonl").write_text(data.read_text().splitlines()[0])
    Path("taken").mkdir()
    Path("taken/thesis.txt").touch()
    found = run(capsys, small_base, "--out", "out", "--data", data, *flags)
    assert (found[0], told in found[1]["error"]) == (code, True), found
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["taken"]
    assert Path("taken/thesis.txt").exists()


@pytest.fixture
def full_disk() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, limits[1]))  # no file may grow beyond
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_the_earlier_model_and_no_half_one(
    small_base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    out = tmp_path / "pruned"
    with folders.staged(out) as part:
        (part / "config.json").touch()
    request.getfixturevalue("full_disk")
    code, report = run(capsys, small_base, "--out", out, "--data", data, "--layers", 1, "--force")
    assert (code, "make room" in report["error"]) == (1, True), report
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "pruned"]
    assert sorted(path.name for path in out.iterdir()) == ["complete.json", "config.json"]
