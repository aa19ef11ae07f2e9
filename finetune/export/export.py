"""From a run or a model to what people serve: written aside, proven, then put in its place. Knows no format.

OUT/NAME-Q4_K_M.gguf                    and beside it NAME-Q4_K_M.gguf.proof.json
OUT/merged/, OUT/gptq/, OUT/gguf-lora/  with proof.json in them
OUT/.export.1f0c2a.part/                of a run that is at work, or was killed; the next one clears it away
"""

import ctypes
import gc
import itertools
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import ProofFailed
from finetune.export import lora, origin, places, proof
from finetune.export.engines import Engine, Transformers
from finetune.export.gguf import Float
from finetune.export.origin import Origin
from finetune.export.proof import Expected, Proof
from finetune.export.wanted import FLOATS, Wanted, settled
from index import folders
from index.embedding import Progress
from index.errors import RagError
from index.generation import sha256
from rag_app.adapters import manifest, sources
from rag_app.adapters.manifest import Manifest
from rag_app.engines import checkpoints
from rag_app.engines.layout import Layout
from rag_app.prompt import PROMPT_VERSION

BITS = 6
"""Of a weight, below which an importance matrix helps: KL 0.03 instead of 0.09 for Q4_K_M of the bundled model."""
ENOUGH = 8192
"""Tokens that it is measured on."""


@dataclass(frozen=True)
class Made:
    """One file or folder, in its place."""

    place: Path
    bytes: int
    proof: Proof


def export(name: str, wanted: Wanted, model: str | None, progress: Progress, tell: Callable[[str], None]) -> list[Made]:
    """Writes, proves and publishes. What was there before stays until then, and where anything fails.

    Args:
        name: of a run, an adapter, a model, or `base`.
        wanted: the rest.
        model: the adapter's base, where it is no longer where the run found it.
        progress: called with (what is being done, done, all).
        tell: called with a line for a person.

    Raises:
        RagError: see `finetune.errors`; nothing is published then, but for types that were proven before.
        OSError: the disk is full, or the folder cannot be written to.
    """
    found = origin.find(name, model)
    wanted = settled(found, wanted, tell)
    outs = places.places(found, wanted)
    parent = next(iter(outs.values())).parent
    with places.work(parent) as work:
        sizes = places.sizes(found, wanted)
        places.check_room(parent, sum(sizes.values()))
        job = _Job(found, wanted, work, sizes, progress, tell)
        if wanted.to == "gguf":
            return job.gguf(outs)
        ((kind, place),) = outs.items()
        with folders.staged(place) as part:
            made = {"gguf-lora": job.lora, "merged": job.merged, "gptq": job.gptq}[wanted.to](part, kind)
            made.write(part / proof.NAME)
        return [Made(place, sum(one.stat().st_size for one in place.iterdir()), made)]


@dataclass(frozen=True)
class _Job:
    """One export."""

    found: Origin
    wanted: Wanted
    work: Path
    sizes: Mapping[str, int]
    progress: Progress
    tell: Callable[[str], None]

    def gguf(self, outs: Mapping[str, Path]) -> list[Made]:
        """A file of each type."""
        coarse = [kind for kind in outs if kind not in FLOATS]
        right, matrix = self._write([kind for kind in FLOATS if kind in outs or (coarse and kind == "f16")], coarse)
        _tidy()
        proofs = {}
        if coarse:  # a type of few bits would hide what is wrong with what it is made of
            proofs["f16"] = self._prove(self._file("f16"), "f16", right)
        made = dict[str, Made]()
        try:
            for kind in (*coarse, *(one for one in outs if one in FLOATS)):
                if kind in coarse:
                    self._file(kind).parent.mkdir()
                    self._quantise(self._file(kind), kind, matrix)
                proven = proofs.get(kind) or self._prove(self._file(kind), kind, right)
                places.publish(self._file(kind), outs[kind], proven, self.work)
                made[kind] = Made(outs[kind], outs[kind].stat().st_size, proven)
        except KeyboardInterrupt:
            if not made:
                raise
            told = ", ".join(one.place.name for one in made.values())
            raise KeyboardInterrupt(f"interrupted; nothing was written but {told}: run it again for the rest") from None
        return [made[kind] for kind in outs]

    def _write(self, kinds: Sequence[Float], coarse: Sequence[str]) -> tuple[Expected, Any]:
        """Files of 16 and 32 bits, what they have to say, and how much each column of the weights matters."""
        from finetune.export import gguf

        model, tokenizer, layout, right = self._merged("f16" if list(kinds) == ["f16"] else "f32")
        if self.wanted.converter:
            # not bf16, in which what is merged would be rounded more than the file's own type rounds it
            self._save(model, tokenizer, self.work / "merged", "f32" if "f32" in kinds else "f16")
        for kind in kinds:
            self._file(kind).parent.mkdir()
            if self.wanted.converter:
                from finetune.export import converter

                file = self._file(kind)
                converter.convert(self.wanted.converter, self.work / "merged", file, kind, self._label(kind))
            else:
                gguf.write(model, tokenizer, self._file(kind), kind, self._label(kind))
        return right, self._matrix(model, layout, coarse) if coarse else None

    def _file(self, kind: str) -> Path:
        """While it is made; a GGUF file keeps the stem of the name as the model's."""
        return self.work / kind / f"{self.found.name}.gguf"

    def _merged(self, kind: Float) -> tuple[Any, Any, Layout, Expected]:
        """The model with its adapter in its weights, rounded to what will be written, and what it said before."""
        import torch

        from finetune.export import merged

        self.progress(f"loading {self.found.base.name}", 0, 1)
        model, tokenizer = origin.load(self.found, self.wanted.dequantised)
        layout = Layout(self.found.base.name, tokenizer)
        right = proof.expected(Transformers(model, layout), layout)
        width = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[kind]
        return (merged.fold(model, width) if self.found.adapter else model), tokenizer, layout, right

    def _matrix(self, model: Any, layout: Layout, kinds: Sequence[str]) -> Any:
        import torch

        from finetune.export import imatrix

        fewer = not self.wanted.converter and any(_bits(kind) < BITS for kind in kinds)
        if not (fewer if self.wanted.imatrix is None else self.wanted.imatrix):
            return None
        try:
            rows = origin.texts(self.found, self.wanted.data, layout)
        except RagError as error:
            if self.wanted.imatrix or self.wanted.data:
                raise
            self.tell(f"without an importance matrix: {error}")
            return None
        ends = itertools.accumulate(map(len, rows))
        rows = [row for row, end in zip(rows, ends, strict=True) if end - len(row) < ENOUGH]
        width = checkpoints.dtype(model.device)
        with torch.autocast(model.device.type, width, enabled=width != torch.float32):
            return imatrix.measure(model, rows, self._label("columns"))

    def _quantise(self, file: Path, kind: str, matrix: Any) -> None:
        from finetune.export import quantise

        name = f"{self.found.name}-{kind}.gguf"
        coarse = quantise.quantise(self._file("f16"), file, kind, matrix, self._label(kind))
        if coarse:
            self.tell(
                f"{name}: {coarse} matrices have rows that do not fill the blocks of {kind}, and got a larger type"
            )

    def lora(self, part: Path, kind: str) -> Proof:
        """The adapter alone, in the folder that `rag-app adapters add` takes."""
        from finetune import methods
        from finetune.export import gguf

        assert self.found.adapter
        folder = self.found.adapter.folder
        self.progress(f"loading {self.found.base.name}", 0, 1)
        model, tokenizer = origin.base(self.found)
        file = self._file("f16")
        file.parent.mkdir()
        gguf.write(model, tokenizer, file, "f16", self._label("f16", "the base to prove it on"))
        rank = lora.write(folder, model, part / manifest.GGUF, "f32" if kind == "f32" else "f16")
        layout = Layout(self.found.base.name, tokenizer)
        tuned = methods.load(model, folder).float().eval()  # only now: some methods move the base's weights
        right = proof.expected(Transformers(tuned, layout), layout)
        del model, tuned
        _tidy()
        self._describe(part, rank)
        return self._prove(file, "f16", right, part / manifest.GGUF)

    def _describe(self, part: Path, rank: int) -> None:
        """What else belongs into the folder of an adapter."""
        assert self.found.adapter
        folder, run = self.found.adapter.folder, self.found.adapter.run
        name = sources.named(self.found.name)
        if run:
            Manifest.of_run(run, name, rank).write(part)
        else:
            base = self.found.facts(False)
            Manifest(
                name=name, base={key: base[key] for key in ("name", "fingerprint")}, prompt_version=PROMPT_VERSION,
                rank=rank,
            ).write(part)  # fmt: skip
        for file in (folder / manifest.RUN, folder / manifest.HELDOUT):
            if file.is_file():
                shutil.copyfile(file, part / file.name)

    def merged(self, part: Path, kind: str) -> Proof:
        """The model with its adapter in its weights, in 16 bits."""
        model, tokenizer, _, right = self._merged(origin.width(self.found))
        self._save(model, tokenizer, part, origin.width(self.found))
        del model
        _tidy()
        self.progress("proving", 0, 1)
        again, tokenizer = origin.whole(Origin(self.found.name, part, checkpoints.find(str(part))))
        return self._compare(Transformers(again, Layout(self.found.name, tokenizer)), right, kind, {})

    def gptq(self, part: Path, kind: str) -> Proof:
        """The same, quantised for GPUs."""
        from finetune.export import gptq

        model, tokenizer, layout, right = self._merged(origin.width(self.found))
        how, rows = self.wanted, origin.texts(self.found, self.wanted.data, layout)
        self._save(model, tokenizer, self.work / "merged", origin.width(self.found))
        del model
        _tidy()
        gptq.write(self.work / "merged", part, how.bits, how.group_size, rows, self._label("gptq"))
        self.progress("proving", 0, 1)
        again, tokenizer = checkpoints.load(checkpoints.find(str(part)), "auto", "auto")
        return self._compare(Transformers(again, Layout(self.found.name, tokenizer)), right, kind, {})

    def _save(self, model: Any, tokenizer: Any, folder: Path, width: Float) -> None:
        from finetune.export import merged

        self.progress(f"writing {width}, {places.amount(self.sizes['f16'])}", 0, 1)
        merged.save(model, tokenizer, folder, width)

    def _prove(self, file: Path, kind: str, right: Expected, adapter: Path | None = None) -> Proof:
        """Of a GGUF file, or of a LoRA on it."""
        from finetune.export.engines import LlamaCpp
        from rag_app.engines.native import Refused

        self.progress(f"proving {kind}", 0, 1)
        what = adapter or file
        facts = {"bytes": what.stat().st_size, "sha256": sha256(what)}
        try:
            with LlamaCpp(file, adapter) as engine:
                return self._compare(engine, right, kind, facts)
        except Refused as error:
            raise ProofFailed(
                f"llama.cpp cannot use what was written as {kind} ({error.args[1]}), which was thrown away: update "
                "llama-cpp-python, or give another type"
            ) from error

    def _compare(self, engine: Engine, right: Expected, kind: str, file: Mapping[str, Any]) -> Proof:
        facts = {"what": self.wanted.to, "source": self.found.facts(self.wanted.dequantised), "file": file}
        return proof.prove(engine, right, kind, facts)

    def _label(self, kind: str, what: str = "") -> Progress:
        """Progress that says of what, and how large it will be."""
        size = f", {places.amount(self.sizes[kind])}" if kind in self.sizes else ""
        return lambda stage, done, total: self.progress(f"{stage} {what or kind}{size}", done, total)


def _tidy() -> None:
    """Gives the memory back that is not used any more; of many small pieces, glibc keeps it otherwise."""
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _bits(kind: str) -> int:
    """Of a weight, about."""
    digits = re.search(r"\d+", kind)
    return int(digits[0]) if digits else 16
