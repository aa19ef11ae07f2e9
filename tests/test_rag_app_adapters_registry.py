"""The registry of adapters: what it takes and refuses, what is in use, and that nothing is ever half done."""

import errno
import json
import math
import os
import random
import shutil
import signal
import struct
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from safetensors.numpy import save_file

from index import folders
from index.errors import RagError
from rag_app.adapters import files, header, registry, state
from rag_app.adapters.manifest import Manifest
from rag_app.adapters.registry import Registry, State, Use
from rag_app.adapters.state import parsed, shown
from rag_app.engines.checkpoints import find
from rag_app.errors import AdapterInvalid, AdapterNotFound
from rag_app.fingerprint import fingerprint
from rag_app.models import locate
from rag_app.prompt import PROMPT_VERSION

pytestmark = pytest.mark.usefixtures("nothing_bundled")

WIDTH, HEIGHT, RANK = 16, 8, 2
RESULT: dict[str, Any] = {
    "at": "now", "adapter": "a", "against": "off", "f1": 0.5, "against_f1": 0.4, "n": 9, "questions": "q.jsonl",
    "taken": True,
}  # fmt: skip
Q = "base_model.model.model.layers.0.self_attn.q_proj"


def gguf(path: Path, tensors: dict[str, Any] | None = None, **facts: Any) -> Path:
    """A LoRA adapter for `tiny`; a fact that is None is left out."""
    facts = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 4.0, **facts}
    writer = GGUFWriter(path, facts.pop("architecture", "llama"))
    for name, value in facts.items():
        if isinstance(value, np.float64):
            writer.add_float64(name, float(value))
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        elif value is not None:
            writer.add_string(name, value)
    for name, shape in (lora() if tensors is None else tensors).items():
        writer.add_tensor(name, np.full(shape, 0.5, np.float32) if isinstance(shape, tuple) else shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def lora(rank: int = RANK, width: int = WIDTH, name: str = "blk.0.attn_q.weight") -> dict[str, Any]:
    return {f"{name}.lora_a": (rank, width), f"{name}.lora_b": (HEIGHT, rank)}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of two matrices, which everything here is trained on and which the settings name."""
    shapes = {"blk.0.attn_q.weight": (HEIGHT, WIDTH), "token_embd.weight": (32, WIDTH)}
    file = gguf(tmp_path / "tiny.gguf", shapes, **{"general.type": "model", "adapter.type": None})
    monkeypatch.setenv("RAG_MODEL", str(file))
    return file


def of_run(base: Path, **changes: Any) -> dict[str, Any]:
    """What `run.json` holds."""
    source = find(str(base))
    return {
        "base_model": {"name": source.name, "place": source.where, "fingerprint": fingerprint(source)},
        **{"prompt_version": PROMPT_VERSION, "method": "lora", "started": "2026-02-03T04:05:06+0000"},
        **{"config": {"base_model": str(base)}, "data": {"rows.jsonl": {"bytes": 3, "sha256": "x"}}},
        **changes,
    }


def peft(folder: Path, rank: int = RANK, width: int = WIDTH, **settings: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{Q}.lora_A.weight": (rank, width), f"{Q}.lora_B.weight": (HEIGHT, rank)}
    save_file(
        {name: np.ones(shape, np.float32) for name, shape in tensors.items()}, folder / "adapter_model.safetensors"
    )
    written = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(written))
    return folder


def trained(folder: Path, base: Path, **changes: Any) -> Path:
    """A run's folder, as training leaves it."""
    with folders.staged(folder / "adapter") as part:
        peft(part)
        (part / "run.json").write_text(json.dumps(of_run(base, **changes)))
        (part / "heldout.jsonl").write_text('{"question": "Who?", "answer": "Ann"}\n')
        (part / "training.safetensors").write_bytes(b"for further training only")
    return folder


def exported(folder: Path, base: Path, name: str = "tax", rank: int | None = RANK, **changes: Any) -> Path:
    """What `rag-finetune export --to gguf-lora` writes."""
    ran = of_run(base, **changes)
    with folders.staged(folder) as part:
        gguf(part / "adapter.gguf", lora(rank or RANK))
        Manifest.of_run(ran, name, rank).write(part)
        (part / "run.json").write_text(json.dumps(ran))
        (part / "proof.json").write_text("{}")
    return folder


@pytest.fixture
def run(tmp_path: Path, tiny: Path) -> Path:
    """A run, exported."""
    trained(tmp_path / "Tax 2026", tiny)
    exported(tmp_path / "Tax 2026" / "export" / "gguf-lora", tiny, "tax-2026")
    return tmp_path / "Tax 2026"


@pytest.fixture
def kept(tmp_path: Path, tiny: Path) -> Registry:
    """Three adapters: a, b and c."""
    kept = Registry()
    folder = exported(tmp_path / "made", tiny)
    for name in "abc":
        kept.add(folder, name)
    return kept


@pytest.fixture
def bundled(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = exported(tmp_path / "package" / "bundled", tiny, "default")
    monkeypatch.setattr(registry, "BUNDLED", folder)
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_run_and_its_export_become_one_adapter(run: Path, tiny: Path) -> None:
    entry = Registry().add(run)
    assert (entry.name, entry.bundled) == ("tax-2026", False)
    assert entry.gguf == entry.folder / "adapter.gguf" and entry.peft == entry.folder
    assert names(entry.folder) == {
        "adapter.gguf", "adapter_config.json", "adapter_model.safetensors", "complete.json", "heldout.jsonl",
        "manifest.json", "proof.json", "run.json",
    }  # fmt: skip
    assert entry.heldout and entry.heldout.read_text().startswith('{"question"')
    made = entry.manifest
    assert made.base == {"name": "tiny.gguf", "fingerprint": fingerprint(find(str(tiny)))}
    assert (made.rank, made.method, made.made, made.prompt_version) == (
        2,
        "lora",
        "2026-02-03T04:05:06+0000",
        PROMPT_VERSION,
    )
    assert made.data == {"rows.jsonl": {"bytes": 3, "sha256": "x"}}
    assert folders.whole(entry.folder) == ""
    assert Registry().names() == ["tax-2026"]


@pytest.mark.parametrize(
    ("part", "forms"),
    [(".", ["gguf", "peft"]), ("adapter", ["gguf", "peft"]), ("export/gguf-lora", ["gguf"])],
)
def test_a_run_can_be_named_by_its_parts(run: Path, part: str, forms: list[str]) -> None:
    Registry().add(run / part)
    row = Registry().row("tax-2026")
    assert (row["name"], row["forms"], row["in_use"]) == ("tax-2026", forms, None)
    assert row["bytes"] == sum(row["files"].values())


def test_a_run_that_was_never_exported_has_one_form(tmp_path: Path, tiny: Path) -> None:
    entry = Registry().add(trained(tmp_path / "plain", tiny), name="other")
    assert (entry.name, entry.gguf, entry.peft) == ("other", None, entry.folder)


def test_what_does_not_say_its_base_needs_to_be_told(tmp_path: Path, tiny: Path) -> None:
    made, file = peft(tmp_path / "Of PEFT"), gguf(tmp_path / "bare.gguf")
    for source in (made, file):
        with pytest.raises(AdapterInvalid, match=r"which model '.+' was trained on: give it with --base MODEL"):
            Registry().add(source)
    one, two = Registry().add(made, base=str(tiny)), Registry().add(file, base=str(tiny))
    assert (one.name, one.manifest.rank, one.gguf) == ("of-peft", RANK, None)
    assert (two.name, two.manifest.rank, two.peft) == ("bare", RANK, None)
    own = {"name": "tiny.gguf", "fingerprint": fingerprint(find(str(tiny)))}
    assert one.manifest.base == two.manifest.base == own


def test_a_base_that_is_given_goes_before_the_recorded_one(tmp_path: Path, tiny: Path) -> None:
    other = gguf(tmp_path / "converted.gguf", {"blk.0.attn_q.weight": (HEIGHT, WIDTH)}, **{"general.type": "model"})
    entry = Registry().add(exported(tmp_path / "made", tiny), base=str(other))
    assert entry.manifest.base == {"name": "converted.gguf", "fingerprint": fingerprint(find(str(other)))}


def _with(change: Callable[[Path], object]) -> Callable[[Path, Path], Path]:
    """A folder by the contract, changed before it is sealed."""

    def make(to: Path, tiny: Path) -> Path:
        folder = exported(to / "x", tiny)
        (folder / "complete.json").unlink()
        change(folder)
        return folder

    return make


def _edited(**changes: Any) -> Callable[[Path, Path], Path]:
    def change(folder: Path) -> None:
        stored = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**stored, **changes}))

    return _with(change)


def _holding(tensors: dict[str, Any] | None = None, **facts: Any) -> Callable[[Path, Path], Path]:
    return _with(lambda folder: gguf(folder / "adapter.gguf", tensors, **facts))


def _peft(**settings: Any) -> Callable[[Path, Path], Path]:
    return lambda to, tiny: peft(trained(to / "run", tiny) / "adapter", **settings)


def _nothing(to: Path, tiny: Path) -> Path:
    return to / "none"


def _model(to: Path, tiny: Path) -> Path:
    (to / "adapter").mkdir()
    (to / "adapter" / "config.json").write_text("{}")
    return to


def _pickled(to: Path, tiny: Path) -> Path:
    folder = peft(to / "pickled")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    return folder


def _stale(to: Path, tiny: Path) -> Path:
    exported(trained(to / "run", tiny) / "export" / "gguf-lora", tiny, started="2025-01-01")
    return to / "run"


def _text(to: Path, tiny: Path) -> Path:
    (to / "notes.txt").write_text("x")
    return to / "notes.txt"


def _model_file(to: Path, tiny: Path) -> Path:
    return gguf(to / "model.gguf", {"blk.0.attn_q.weight": (8, 16)}, **{"general.type": "model"})


def _cut_short(to: Path, tiny: Path) -> Path:
    (to / "checkpoint-4").mkdir()
    return to


def _linked(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        shutil.move(folder / name, folder.parent / "outside")
        (folder / name).symlink_to(folder.parent / "outside")

    return change


def _moved(folder: Path) -> None:
    """The second tensor overlaps the first."""
    file = folder / "adapter.gguf"
    data, name = file.read_bytes(), b"blk.0.attn_q.weight.lora_b"
    at = data.index(name) + len(name) + 4 + 2 * 8 + 4
    file.write_bytes(data[:at] + bytes(8) + data[at + 8 :])


REFUSED: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "nothing": (_nothing, "there is no '.*none': name a run, a folder, an archive or a GGUF file"),
    "text": (_text, "notes.txt' is no adapter: name a run"),
    "an empty folder": (lambda to, tiny: to, "is no adapter: name a run, or what was exported of one"),
    "a whole model": (_model, "holds a whole model, no adapter: give it with --model"),
    "a whole model's file": (_model_file, "model.gguf' holds a whole model, no adapter: give it with --model"),
    "a run cut short": (_cut_short, "the run in .* was cut short: rag-finetune train CONFIG.yaml --resume"),
    "a pickle": (_pickled, "a pickle such as adapter_model.bin is never read; save them as safetensors"),
    "an export of before": (_stale, "exported before the last training: run rag-finetune export .* --to gguf-lora"),
    "no weights": (_with(lambda at: (at / "adapter.gguf").unlink()), "'tax' holds no weights"),
    "a link": (_with(_linked("adapter.gguf")), "adapter.gguf' leads out of '.*': put the file itself there"),
    "a linked manifest": (_with(_linked("manifest.json")), "manifest.json' leads out of"),
    "a pipe": (_with(lambda at: os.mkfifo(at / "heldout.jsonl")), "heldout.jsonl' is no file"),
    "a loop": (_with(lambda at: (at / "heldout.jsonl").symlink_to("heldout.jsonl")), "heldout.jsonl' is no file"),
    "a huge text": (_with(lambda at: os.truncate(at / "proof.json", 1 << 30)), "proof.json' has 1,073,741,824 bytes"),
    "another version": (_edited(version=2), "manifest.json' is of another version of this program: update it"),
    "other prompts": (
        _edited(prompt_version=99),
        "prompts of version 99, and these are of version [0-9]+: train it again",
    ),
    "no prompts": (_edited(prompt_version=True), "damaged .it names no prompt version.: add the adapter again"),
    "no base": (_edited(base={"name": "x"}), "damaged .it names no base model."),
    "an odd name": (_edited(name="../x"), "damaged .its name is none."),
    "an odd rank": (_edited(rank=0), "damaged .its rank is none."),
    "a rank beyond all": (_edited(rank=10**400), "damaged .its rank is none."),
    "an odd method": (_edited(method=["lora"]), "damaged .its 'method' is no text of one line."),
    "a method of two lines": (_edited(method="lora\n* x"), "damaged .its 'method' is no text of one line."),
    "a base of two lines": (
        _edited(base={"name": "x\n* y", "fingerprint": "0"}),
        "damaged .the name of its base is none.",
    ),
    "odd settings": (_edited(config=[]), "damaged .its 'config' is no table."),
    "a list": (
        _with(lambda at: (at / "manifest.json").write_text("[]")),
        "manifest.json' cannot be read: it is damaged",
    ),
    "another rank": (_edited(rank=4), "adapter.gguf has rank 2, and is said to have 4"),
    "no adapter": (_holding(**{"general.type": "model"}), "is no LoRA adapter .general.type is 'model', not 'adapter'"),
    "no lora": (_holding(**{"adapter.type": "control"}), "is no LoRA adapter .adapter.type is 'control'"),
    "no alpha": (_holding(**{"adapter.lora.alpha": None}), "its adapter.lora.alpha is no number"),
    "alpha": (_holding(**{"adapter.lora.alpha": math.inf}), "its adapter.lora.alpha is no number"),
    "an endless alpha": (_holding(**{"adapter.lora.alpha": 1e30}), "its adapter.lora.alpha is no number"),
    "an alpha below 0": (_holding(**{"adapter.lora.alpha": -4.0}), "its adapter.lora.alpha is no number"),
    "alpha of 64 bits": (
        _holding(**{"adapter.lora.alpha": np.float64(4)}),
        "its adapter.lora.alpha is no number of 32",
    ),
    "aLoRA": (_holding(**{"adapter.alora.invocation_tokens": [5, 6]}), "is to be switched on by certain words"),
    "no tensors": (_holding({}), "adapter.gguf holds no LoRA adapter"),
    "half a pair": (_holding({"blk.0.attn_q.weight.lora_a": (2, 16)}), "'blk.0.attn_q.weight' lacks .lora_b"),
    "two ranks": (
        _holding({"blk.0.attn_q.weight.lora_a": (2, 16), "blk.0.attn_q.weight.lora_b": (8, 3)}),
        "the two matrices of 'blk.0.attn_q.weight' have ranks 2 and 3",
    ),
    "vectors": (_holding({"v.lora_a": (2,), "v.lora_b": (2,)}), "'v' is no pair of matrices"),
    "more than LoRA": (
        _holding({**lora(), "output_norm.weight": (16,)}),
        "holds 'output_norm.weight', which is no LoRA",
    ),
    "whole numbers": (_holding({"x.lora_a": np.ones((2, 2), np.int32)}), "'x.lora_a' in a type that no adapter has"),
    "another width": (
        _holding(lora(width=12)),
        "of another model: the shape of .* is .12, 8., and .16, 8. in 'tiny.gguf'",
    ),
    "another layer": (_holding(lora(name="blk.9.attn_q.weight")), "of another model: .* and None in 'tiny.gguf'"),
    "another family": (_holding(architecture="qwen2"), "general.architecture is qwen2, and llama in 'tiny.gguf'"),
    "cut weights": (_with(lambda at: os.truncate(at / "adapter.gguf", 300)), "does not lie where|ends too soon"),
    "weights beside their place": (_with(_moved), "'blk.0.attn_q.weight.lora_b' does not lie where it should"),
    **{
        f"{value} in {kind.__name__}": (
            _holding({"x.lora_a": np.full((2, 2), value, kind), "x.lora_b": np.ones((2, 2), kind)}),
            "'x.lora_a' holds what is no number",
        )
        for value in (math.nan, -math.inf)
        for kind in (np.float32, np.float16)
    },
    "no GGUF": (_with(lambda at: (at / "adapter.gguf").write_text("GGML")), "'adapter.gguf' is no GGUF file"),
    "a damaged run": (_peft(), "has changed"),
}


@pytest.mark.parametrize(("make", "phrase"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_whole_adapter_is_refused(
    make: Callable[[Path, Path], Path], phrase: str, tmp_path: Path, tiny: Path
) -> None:
    (tmp_path / "in").mkdir()
    if make is REFUSED["a damaged run"][0]:
        folder = trained(tmp_path / "in" / "run", tiny) / "adapter"
        (folder / "heldout.jsonl").write_text("{}")
    else:
        folder = make(tmp_path / "in", tiny)
    with pytest.raises(AdapterInvalid, match=phrase) as caught:
        Registry().add(folder)
    assert "\n" not in str(caught.value)
    kept = Registry()
    assert kept.names() == []
    assert not kept.root.exists() or names(kept.root) == {".lock"}


PEFT = {
    "a smaller rank": ({"r": 4}, "adapter_model.safetensors has rank 2, and adapter_config.json says 4"),
    "layers of ours": (
        {"peft_type": "BOTTLENECK"},
        "the method 'adapter', which cannot be swapped into a model that runs",
    ),
    "no kind": ({"peft_type": None}, "adapter_config.json beside it does not say what it is"),
    "an alpha of letters": ({"lora_alpha": "x"}, "lora_alpha in adapter_config.json is no number from 0"),
    "no number for alpha": ({"lora_alpha": math.nan}, "lora_alpha in adapter_config.json is no number from 0"),
}


@pytest.mark.parametrize(("settings", "phrase"), PEFT.values(), ids=PEFT)
def test_what_peft_cannot_have_written_is_refused(
    settings: dict[str, Any], phrase: str, tmp_path: Path, tiny: Path
) -> None:
    with pytest.raises(AdapterInvalid, match=phrase):
        Registry().add(peft(tmp_path / "made", **settings), base=str(tiny))


@pytest.mark.parametrize("harm", [b"", b"\xff" * 8, b"\x10" + b"\0" * 7 + b'{"a":[1,2,3]}   '])
def test_damaged_safetensors_are_refused(harm: bytes, tmp_path: Path, tiny: Path) -> None:
    folder = peft(tmp_path / "made")
    (folder / "adapter_model.safetensors").write_bytes(harm)
    with pytest.raises(AdapterInvalid, match=r"adapter_model.safetensors is damaged"):
        Registry().add(folder, base=str(tiny))


@pytest.mark.parametrize(
    ("value", "phrase"),
    [(np.float32(math.nan), "holds what is no number"), (np.int32(1), "in a type that no adapter has .I32.")],
)
def test_weights_of_peft_that_are_no_numbers_are_refused(value: Any, phrase: str, tmp_path: Path, tiny: Path) -> None:
    folder = peft(tmp_path / "made")
    tensors = {
        f"{Q}.lora_A.weight": np.ones((RANK, WIDTH), np.float32),
        f"{Q}.lora_B.weight": np.full((HEIGHT, RANK), value),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterInvalid, match=phrase):
        Registry().add(folder, base=str(tiny))


def test_settings_however_deep_are_kept(tmp_path: Path, tiny: Path) -> None:
    deep: Any = 1
    for _ in range(600):
        deep = [deep]
    assert Registry().add(_edited(config={"x": deep})(tmp_path, tiny)).manifest.config == {"x": deep}


def test_a_base_in_the_home_of_nobody_is_no_base(tmp_path: Path, tiny: Path) -> None:
    added = Registry().add(_edited(config={"base_model": "~nobody-at-all/m"})(tmp_path, tiny))
    assert added.manifest.base["name"] == "tiny.gguf"
    with pytest.raises(RagError, match="~nobody-at-all/m"):
        Registry().add(exported(tmp_path / "other", tiny, "other"), base="~nobody-at-all/m")


def test_earlier_results_go_before_what_they_belong_to(
    kept: Registry, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.results.add(["a"], RESULT)

    def full(name: str, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(kept.files, "write", full)
    before = kept.get("a").manifest
    for change in (
        lambda: kept.add(exported(tmp_path / "new", tiny, "a", made="later"), replace=True),
        lambda: kept.remove("a"),
    ):
        with pytest.raises(OSError, match="No space left"):
            change()
        assert kept.get("a", hashed=True).manifest == before and kept.show("a")["scores"]["gate"] == [RESULT]


def test_a_folder_in_the_place_of_a_file_is_no_adapter(kept: Registry) -> None:
    (kept.root / "scores.json").mkdir()
    assert kept.names() == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["active.json", "scores.json", "a/complete.json"])
def test_a_pipe_in_the_place_of_a_file_keeps_nobody_waiting(name: str, kept: Registry) -> None:
    (kept.root / name).unlink(missing_ok=True)
    os.mkfifo(kept.root / name)
    with pytest.raises(AdapterInvalid, match=name.rpartition("/")[2].replace(".", "[.]")):
        kept.in_use()
        kept.show("a")


def test_the_shapes_of_peft_s_form_are_compared_with_a_base_that_is_a_folder(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    weight = {"model.layers.0.self_attn.q_proj.weight": np.ones((HEIGHT, WIDTH), np.float32)}
    save_file(weight, base / "model.safetensors")
    assert Registry().add(peft(tmp_path / "right"), base=str(base)).manifest.rank == RANK
    with pytest.raises(
        AdapterInvalid, match=r"of another model: the shape of .*q_proj' is .8, 12., and .8, 16. in 'base'"
    ):
        Registry().add(peft(tmp_path / "wrong", width=12), base=str(base))


def test_other_kinds_of_peft_have_no_rank(tmp_path: Path, tiny: Path) -> None:
    assert Registry().add(peft(tmp_path / "ia3", peft_type="IA3"), base=str(tiny)).manifest.rank is None
    patterned = peft(tmp_path / "patterned", r=64, rank_pattern={"q_proj": 2})
    assert Registry().add(patterned, base=str(tiny)).manifest.rank == RANK


def test_words_may_be_adapted_too(tmp_path: Path, tiny: Path) -> None:
    words = {"token_embd.weight.lora_a": (32, 2), "token_embd.weight.lora_b": (16, 2)}  # A lies the other way
    assert Registry().add(gguf(tmp_path / "words.gguf", {**lora(), **words}), base=str(tiny)).manifest.rank == 2
    wrong = gguf(tmp_path / "wrong.gguf", {**words, "token_embd.weight.lora_b": (15, 2)})
    with pytest.raises(AdapterInvalid, match=r"shape of 'token_embd.weight' is .15, 32., and .16, 32."):
        Registry().add(wrong, base=str(tiny))


@pytest.mark.parametrize("name", ["off", "base", "active.json", "A", "", "a/b", "..", ".a", "a" * 65, "a:1", "a,b"])
def test_names_that_mean_something_else_are_refused(name: str, tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(AdapterInvalid, match="is no name for an adapter: give small letters"):
        Registry().add(exported(tmp_path / "made", tiny), name)


def test_a_name_is_taken_again_only_by_force_and_never_while_in_use(kept: Registry, tmp_path: Path, tiny: Path) -> None:
    other = exported(tmp_path / "other", tiny, rank=3)
    with pytest.raises(
        AdapterInvalid, match="there is an adapter 'a' already: replace it with --force, or give --name"
    ):
        kept.add(other, "a")
    kept.results.add(["a"], RESULT)
    assert kept.add(other, "a", replace=True).manifest.rank == 3
    assert kept.show("a")["scores"]["gate"] == []
    kept.use([Use("a")])
    with pytest.raises(AdapterInvalid, match="'a' is in use: give another name with --name"):
        kept.add(other, "a", replace=True)
    assert names(kept.root) == {"a", "b", "c", "active.json", "scores.json", ".lock"}


def test_use_off_and_rollback_go_back_step_by_step(kept: Registry) -> None:
    assert kept.in_use() == State()
    kept.use([Use("a")])
    kept.use([Use("a"), Use("b", 0.5)])
    assert kept.off() == Registry().in_use() == State((), True, (None, (Use("a"),), (Use("a"), Use("b", 0.5))))
    assert shown(kept.rollback().active) == "a,b:0.5"
    assert kept.in_use() == State((Use("a"), Use("b", 0.5)), True, (None, (Use("a"),)))
    assert shown(kept.rollback().active) == "a"
    assert kept.rollback() == State() and kept.in_use().as_dict() == {"active": [], "chosen": False}
    with pytest.raises(AdapterNotFound, match="nothing was in use before: 'rag-app adapters use NAME' chooses"):
        kept.rollback()


def test_the_same_again_is_no_new_state(kept: Registry) -> None:
    kept.use([Use("a")])
    assert kept.use([Use("a")]).history == (None,)
    assert kept.use([Use("a", 0.5)]).history == (None, (Use("a"),))


def test_a_hundred_states_are_kept(kept: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "STATES", 3)
    for name in "abcab":
        kept.use([Use(name)])
    assert [shown(uses or ()) for uses in kept.in_use().history] == ["b", "c", "a"]
    kept.rollback()
    assert [shown(uses or ()) for uses in kept.in_use().history] == ["b", "c"]


def test_rollback_passes_over_what_is_gone(kept: Registry) -> None:
    for name in "abc":
        kept.use([Use(name)])
    kept.remove("b")
    assert shown(kept.rollback().active) == "a"


def test_the_bundled_adapter_is_in_use_until_somebody_chooses(bundled: Path, kept: Registry) -> None:
    assert kept.names() == ["a", "b", "c", "default"]
    entry = kept.get("default")
    assert (entry.bundled, entry.gguf) == (True, bundled / "adapter.gguf")
    assert kept.in_use() == State((Use("default"),), False)
    assert kept.off() == State((), True, (None,))
    assert kept.rollback() == State((Use("default"),), False)
    assert kept.use([Use("default")]).chosen
    with pytest.raises(AdapterInvalid, match="'default' came with the program and stays: 'rag-app adapters off'"):
        kept.remove("default")
    with pytest.raises(AdapterInvalid, match="'default' came with the program and stays: give another name"):
        kept.add(bundled, replace=True)
    kept.results.add(["default"], RESULT)
    assert kept.show("default")["scores"]["gate"] == [RESULT]
    assert folders.whole(bundled) == ""


def test_a_damaged_bundled_adapter_is_told_of_and_can_be_done_without(bundled: Path, kept: Registry) -> None:
    (bundled / "adapter.gguf").write_text("")
    with pytest.raises(
        AdapterInvalid, match=r"'default' is damaged .adapter.gguf is 0 of .* install the program again"
    ):
        kept.get("default")
    (bundled / "manifest.json").write_text("{")
    registry._name_in.cache_clear()
    with pytest.raises(AdapterInvalid, match="cannot be read: it is damaged"):
        kept.in_use()
    assert kept.names() == ["a", "b", "c"]
    assert kept.use([Use("a")]).active == (Use("a"),)


def test_what_is_in_use_is_parsed_only_when_it_changed(kept: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.use([Use("a")])
    reader, parsings = Registry(), list[str]()
    decoded = state.decoded
    monkeypatch.setattr(registry, "decoded", lambda text: parsings.append(text) or decoded(text))
    assert [shown(reader.in_use().active) for _ in range(3)] == ["a"] * 3
    assert len(parsings) == 1
    times = [4_000_000_000_000_000_000]
    os.utime(kept.root / "active.json", ns=(times[0], times[0]))  # a clock that stands still
    for name in "bcba":
        Registry().use([Use(name)])
        assert shown(reader.in_use().active) == name
        times.append((kept.root / "active.json").stat().st_mtime_ns)
    assert times == sorted(set(times))  # as the file may be of the same size, and at the same place on the disk


DAMAGED = {
    "empty": b"",
    "cut": b'{"version": 1, "active": [{"name": "a", ',
    "not UTF-8": b"\xff\xfe",
    "a list": b"[]",
    "no state": b'{"version": 1}',
    "an odd state": b'{"version": 1, "active": {"a": 1}, "history": []}',
    "an odd name": b'{"version": 1, "active": [{"name": "../a", "weight": 1}], "history": []}',
    "an odd weight": b'{"version": 1, "active": [{"name": "a", "weight": NaN}], "history": []}',
    "a weight beyond all": b'{"version": 1, "active": [{"name": "a", "weight": 1%b}], "history": []}' % (b"0" * 400),
    "odd states before": b'{"version": 1, "active": [], "history": [7]}',
    "deep": b"[" * 100_000,
    "an odd version": b'{"version": "x"}',
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_state_is_one_line_and_written_anew(content: bytes, kept: Registry) -> None:
    (kept.root / "active.json").write_bytes(content)
    for ask in (kept.in_use, kept.rollback, lambda: kept.remove("a")):
        with pytest.raises(AdapterInvalid, match=r"active.json' is damaged: 'rag-app adapters use NAME' and .* off'"):
            ask()
    assert kept.row("a")["in_use"] is None
    assert kept.off() == State((), True, (None,)) == Registry().in_use()


def test_a_state_of_a_later_version_is_told_as_such(kept: Registry) -> None:
    (kept.root / "active.json").write_text('{"version": 2, "active": "?"}')
    with pytest.raises(AdapterInvalid, match=r"active.json' is of a later version of this program: 'rag-app adapters"):
        kept.in_use()
    assert kept.use([Use("b")]).active == (Use("b"),)


def test_a_state_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "rag-home").mkdir()
    (tmp_path / "rag-home" / "adapters").write_text("a file")
    with pytest.raises(AdapterInvalid, match=r"cannot be read .Not a directory.: check its permissions"):
        Registry().in_use()


def test_texts_of_what_is_used() -> None:
    assert parsed("off") == parsed("base") == ()
    assert parsed("a, b:0.5,c:-2") == (Use("a"), Use("b", 0.5), Use("c", -2))
    assert shown(parsed("a,b:0.1234567,c:2,d:20e-1")) == "a,b:0.1234567,c:2,d:2"
    assert parsed(shown(parsed("b:0.1234567"))) == (Use("b", 0.1234567),)
    for text, phrase in (
        ("", "'' is no adapter's name: 'rag-app adapters list' shows those there are"),
        ("a,off", "'off' is no adapter's name"),
        ("a:x", "the weight of 'a' is 'x': give a number, as in a:0.5"),
        ("a:", "the weight of 'a' is ''"),
        ("a:0", "the weight of 'a' is 0.0: give a number from -10 to 10, not 0"),
        ("a:nan", "the weight of 'a' is nan"),
        ("a:11", "the weight of 'a' is 11.0"),
        ("a,a:0.5", "'a' is there twice: name it once, with one weight"),
        (",".join("abcdefghi"), "9 adapters are too many at once: name at most 8"),
    ):
        with pytest.raises(AdapterInvalid, match=phrase):
            parsed(text)


def test_what_is_not_here_or_not_whole_is_not_used(kept: Registry, tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(AdapterNotFound, match="there is no adapter 'x': there are a, b, c"):
        kept.use([Use("a"), Use("x")])
    with pytest.raises(AdapterNotFound, match="there are none"):
        Registry(tmp_path / "empty").get("../a")
    stored = json.loads((kept.root / "a" / "manifest.json").read_text())
    with folders.staged(kept.root / "a") as part:
        (part / "manifest.json").write_text(json.dumps({**stored, "prompt_version": 99}))
    with pytest.raises(AdapterInvalid, match="'a' was trained with prompts of version 99"):
        kept.use([Use("a")])
    assert kept.in_use() == State()


@pytest.mark.parametrize("name", ["adapter.gguf", "manifest.json", "run.json", "proof.json", "complete.json"])
def test_damage_of_every_file_is_seen(name: str, kept: Registry) -> None:
    file = kept.root / "a" / name
    whole = file.read_bytes()
    file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    for ask in (lambda: kept.use([Use("a")]), lambda: kept.show("a")):
        with pytest.raises(AdapterInvalid, match=rf"'a' is damaged .{name}.*: add it again with --force"):
            ask()
    file.write_bytes(whole[:-1])
    with pytest.raises(AdapterInvalid, match=rf"'a' is damaged .{name}.*: add it again with --force"):
        kept.get("a")
    assert f"({name}" in kept.row("a")["error"]
    file.unlink()
    assert name in kept.row("a")["error"]
    assert kept.row("b")["forms"] == ["gguf"]


def test_something_else_in_use_meanwhile_is_noticed(kept: Registry) -> None:
    before = kept.in_use()
    Registry().use([Use("b")])
    with pytest.raises(AdapterInvalid, match="'b' came into use meanwhile, in place of 'off': run it again"):
        kept.use([Use("a")], instead_of=before)
    assert shown(kept.in_use().active) == "b"


def test_removed_is_gone_unless_in_use(kept: Registry) -> None:
    kept.use([Use("a"), Use("b")])
    with pytest.raises(AdapterInvalid, match="'b' is in use: 'rag-app adapters off' or 'use OTHER' first"):
        kept.remove("b")
    kept.results.add(["b", "c"], RESULT)
    kept.remove("c")
    with pytest.raises(AdapterNotFound, match="there is no adapter 'c'"):
        kept.remove("c")
    assert names(kept.root) == {"a", "b", "active.json", "scores.json", ".lock"}
    assert json.loads((kept.root / "scores.json").read_text())["gate"] == {"b": [RESULT]}


def test_twenty_results_of_the_gate_are_kept_and_damage_is_told(kept: Registry) -> None:
    for number in range(25):
        kept.results.add(["a"], {**RESULT, "f1": number})
    assert [row["f1"] for row in kept.show("a")["scores"]["gate"]] == list(range(5, 25))
    made, text = kept.get("b").folder, ""
    for text in ('{"gate": {"a": [1]}}', '{"gate": {"a": "abc"}}', '{"gate": {"a": [{}]}}', "{"):
        (kept.root / "scores.json").write_text(text)
        with pytest.raises(AdapterInvalid, match=r"scores.json' is damaged: remove it"):
            kept.show("a")
    for ask in (
        lambda: kept.show("a"),
        lambda: kept.results.add(["a"], RESULT),
        lambda: kept.remove("a"),
        lambda: kept.add(made, "d"),
    ):
        with pytest.raises(AdapterInvalid, match=r"scores.json' is damaged: remove it; no more than earlier results"):
            ask()
    assert (kept.root / "scores.json").read_text() == "{" and kept.names() == ["a", "b", "c"]


# The header of a GGUF file


def test_headers_are_read_as_by_the_library_that_writes_them(tiny: Path, tmp_path: Path) -> None:
    file = gguf(tmp_path / "x.gguf", {**lora(), "half.lora_a": np.ones((3, 32), np.float16)})
    own, theirs = header.read(file), GGUFReader(file)
    wanted = {one.name: (tuple(one.shape), one.tensor_type.value, one.data_offset) for one in theirs.tensors}
    assert {name: (one.shape, one.kind, one.offset) for name, one in own.tensors.items()} == wanted
    assert own.facts == {name: f.contents() for name, f in theirs.fields.items() if not name.startswith("GGUF.")}


def test_the_bundled_model_s_header_is_read_past_its_vocabulary() -> None:
    found = header.read(locate(), header.MODELS)
    assert found.facts["general.architecture"] == "llama" and "tokenizer.ggml.tokens" not in found.facts
    assert found.tensors["token_embd.weight"].shape == (576, 49152)
    with pytest.raises(AdapterInvalid, match="it ends too soon"):
        header.read(locate(), 1 << 16)


def _packed(*pairs: tuple[str, int, bytes], tensors: int = 0, count: int | None = None) -> bytes:
    head = struct.pack("<4sIQQ", b"GGUF", 3, tensors, len(pairs) if count is None else count)
    return head + b"".join(struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value
                           for name, kind, value in pairs)  # fmt: skip


MANY = struct.pack("<Q", 1 << 60)
HOSTILE = {
    "many facts": _packed(count=1 << 60),
    "many tensors": _packed(tensors=1 << 60),
    "a long text": _packed(("a", 8, MANY)),
    "a long list": _packed(("a", 9, struct.pack("<I", 0) + MANY)),
    "a long list of texts": _packed(("a", 9, struct.pack("<I", 8) + MANY)),
    "lists in lists": _packed(("a", 9, (struct.pack("<I", 9) + MANY) * 1000)),
    "an odd type": _packed(("a", 77, b"")),
    "a fact twice": _packed(("a", 0, b"1"), ("a", 0, b"1")),
    "no alignment": _packed(("general.alignment", 4, b"\0\0\0\0")),
    "a huge alignment": _packed(("general.alignment", 4, b"\xff\xff\xff\xff")),
    "an odd alignment": _packed(("general.alignment", 8, struct.pack("<Q", 1) + b"x")),
    "many dimensions": _packed(tensors=1) + struct.pack("<QcI", 1, b"a", 1 << 31),
    "no size": _packed(tensors=1) + struct.pack("<QcIQIQ", 1, b"a", 1, 0, 0, 0),
    "a huge tensor": _packed(tensors=1) + struct.pack("<QcIQQIQ", 1, b"a", 2, 1 << 40, 1 << 40, 0, 0),
    "another order of bytes": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "an old version": b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
    "no UTF-8": _packed(("a", 8, struct.pack("<Q", 1) + b"\xff")),
    "no more": b"GGUF",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_headers_end_at_once(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(AdapterInvalid, match=r"the header of 'x.gguf' is damaged .+: take the file anew"):
        header.read(tmp_path / "x.gguf")


def test_a_tensor_beyond_the_file_is_refused(tmp_path: Path, tiny: Path) -> None:
    file = gguf(tmp_path / "x.gguf")
    data = file.read_bytes()
    at = data.index(b"lora_b") + len(b"lora_b") + 4 + 16 + 4
    file.write_bytes(data[:at] + struct.pack("<Q", 1 << 62) + data[at + 8 :])
    with pytest.raises(AdapterInvalid, match=r"'blk.0.attn_q.weight.lora_b' does not lie where it should"):
        Registry().add(file, base=str(tiny))


def test_whatever_is_changed_in_a_file_it_is_an_adapter_or_refused(tmp_path: Path, tiny: Path) -> None:
    kept, draws, outcomes = Registry(), random.Random(7), set[str]()
    whole = gguf(tmp_path / "x.gguf").read_bytes()
    for _ in range(60):
        data = bytearray(whole)
        for place in draws.choices(range(len(data)), k=draws.choice((1, 3, 30))):
            data[place] = draws.randrange(256)
        (tmp_path / "x.gguf").write_bytes(data)
        try:
            kept.add(tmp_path / "x.gguf", replace=True, base=str(tiny))
            outcomes.add("taken")
        except AdapterInvalid as error:
            outcomes.add("refused")
            assert "\n" not in str(error)
    assert outcomes == {"taken", "refused"}


# Processes that end in the middle, and several at once


CALLS = frozenset(
    {"open", "write", "fsync", "mkdir", "rmdir", "rename", "replace", "unlink", "utime", "sendfile", "copyfile"}
)


def _killed_at(instant: int, work: Callable[[], object]) -> bool:
    """Does the work in a process that is killed with SIGKILL at this instant; whether it came to its end before."""
    if (child := os.fork()) == 0:
        left = [instant]

        def count(frame: Any, event: str, called: Any) -> None:
            # Whatever is opened, written, flushed, made, renamed or removed is an instant to be killed at.
            if event == "c_call" and called.__name__ in CALLS and not isinstance(called.__self__, str):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.setprofile(count)
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return not os.WIFSIGNALED(status)


CHANGES: dict[str, Callable[[Registry, Path], object]] = {
    "add": lambda kept, made: kept.add(made, "new"),
    "replace": lambda kept, made: kept.add(made, "b", replace=True),
    "use": lambda kept, made: kept.use([Use("b", 0.5)]),
    "rollback": lambda kept, made: kept.rollback(),
    "remove": lambda kept, made: kept.remove("c"),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_killed_at_any_instant_all_is_as_before_or_as_after(
    change: str, kept: Registry, tmp_path: Path, tiny: Path
) -> None:
    kept.use([Use("a")])
    made, before, instants, seen = exported(tmp_path / "new", tiny, rank=3), tmp_path / "before", 0, set[str]()
    shutil.copytree(kept.root, before)

    def now() -> str:
        """All that can be asked; whatever is there is whole."""
        fresh = Registry()
        ranks = {name: fresh.get(name, hashed=True).manifest.rank for name in fresh.names()}
        return json.dumps([fresh.in_use().as_dict(), ranks])

    old = now()
    CHANGES[change](Registry(), made)
    new = now()
    assert old != new
    while True:
        shutil.rmtree(kept.root)
        shutil.copytree(before, kept.root)
        ended = _killed_at(instants, lambda: CHANGES[change](Registry(), made))
        seen.add(now())
        assert seen <= {old, new}
        Registry().use([Use("b")])  # nothing is in the way of who comes next
        assert not [name for name in names(kept.root) if name.endswith((".part", ".old")) and "json" not in name]
        if ended:
            break
        instants += 1 if change in ("use", "rollback") else 4
    assert seen == {old, new}
    assert instants > 5


def test_two_processes_at_once_lose_nothing(kept: Registry) -> None:
    children = []
    for name in "ab":
        if (child := os.fork()) == 0:
            try:
                for _ in range(10):
                    Registry().use([Use(name)])
                    Registry().off()
            finally:
                os._exit(0)
        children.append(child)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    history = [*kept.in_use().history, kept.in_use().active]
    assert all(one != other for one, other in pairwise(history))  # each saw the one before it
    texts = [shown(uses or ()) for uses in history]
    assert texts.count("a") == texts.count("b") == 10


def test_who_waits_too_long_is_told(kept: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PATIENCE", 0.0)
    with kept.files.locked():
        kept.off()  # by whoever has the lock itself
        with pytest.raises(AdapterInvalid, match="another process is changing adapters: wait for its end"):
            Registry().off()
    Registry().off()


def test_what_was_being_replaced_is_back_at_once(kept: Registry) -> None:
    (kept.root / "a").rename(kept.root / ".a.0a1b2c.old")
    assert Registry().get("a", hashed=True).manifest.rank == RANK
    (kept.root / "a").rename(kept.root / ".a.0a1b2c.old")
    assert Registry().use([Use("a")]).active == (Use("a"),)
