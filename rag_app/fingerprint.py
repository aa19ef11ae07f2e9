"""Tells models apart by their weights, so that an adapter is used with its own base alone. Loads no model."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from index import memo
from rag_app.engines.checkpoints import Source

BLOCK = 1 << 16
BLOCKS = 4096
"""Blocks that are read at most: files of up to 256 MiB are read whole, of larger ones as much, at even distances."""
WEIGHTS = ("model*.safetensors", "*.safetensors", "pytorch_model*.bin", "*.bin")
"""Weight files of a folder; of the first kind that is there."""


def fingerprint(source: Source) -> str:
    """First 16 hex digits of the SHA-256 over sizes and contents of a model's weight files, read in blocks.

    That of a GGUF file is the file's own, whatever it is converted into for training. The files' names do not count.
    What was read once is kept by the files' paths, sizes and times of change, as in `index.modelfiles`.

    Raises:
        OSError: the files cannot be read.
        FileNotFoundError: there are none.
    """
    files = weights(source)
    found = [(str(file.resolve()), file.stat()) for file in files]
    key = repr([(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for path, stat in found])
    known = memo.get("models", key)
    if isinstance(known, str) and len(known) == 16:
        return known
    digest = hashlib.sha256()
    for block in _blocks(files):
        digest.update(block)
    memo.put("models", key, digest.hexdigest()[:16])
    return digest.hexdigest()[:16]


def weights(source: Source) -> list[Path]:
    """The files that hold a model's weights.

    Raises:
        FileNotFoundError: there are none.
    """
    folder = _folder(source)
    if source.gguf:
        return [folder / source.gguf]
    for pattern in WEIGHTS:
        if files := sorted(folder.glob(pattern)):
            return files
    raise FileNotFoundError(2, "there are no weights (*.safetensors)", str(folder))


def _folder(source: Source) -> Path:
    if not source.on_the_hub:
        return Path(source.where)
    from huggingface_hub import try_to_load_from_cache

    held = try_to_load_from_cache(source.where, "config.json")
    return Path(held).parent if isinstance(held, str) else Path(source.where)


def _blocks(files: Sequence[Path]) -> Iterator[bytes]:
    counts = [-(-file.stat().st_size // BLOCK) for file in files]
    total = sum(counts)
    for file, count in zip(files, counts, strict=True):
        read = count if total <= BLOCKS else min(count, max(2, BLOCKS * count // total))
        yield file.stat().st_size.to_bytes(8, "little")
        with file.open("rb") as stream:
            for number in range(read):
                stream.seek(BLOCK * (number * (count - 1) // max(read - 1, 1)))  # the first, the last, and between
                yield stream.read(BLOCK)
