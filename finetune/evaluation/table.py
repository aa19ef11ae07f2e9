"""A comparison as lines and cells, for a terminal and for a page. Knows no models, and not how they are drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from finetune.evaluation.compare import Comparison, Row


@dataclass(frozen=True)
class Column:
    """A number of each row."""

    title: str
    field: str
    digits: int
    best: Literal["low", "high"] | None
    unit: float = 1.0


COLUMNS = (
    Column("size MB", "size", 1, "low", 1e6),
    Column("memory MB", "memory", 0, "low", 1e6),
    Column("before", "memory_before", 0, None, 1e6),
    Column("GPU MB", "gpu_memory", 0, "low", 1e6),
    Column("perplexity", "perplexity", 2, "low"),
    Column("KL", "divergence", 4, "low"),
    Column("prompt tok/s", "prompt_tokens_per_second", 1, "high"),
    Column("generated tok/s", "generation_tokens_per_second", 1, "high"),
    Column("score", "score", 3, "high"),
)


def columns(found: Comparison) -> list[Column]:
    """Those that any row has a number in; a GPU's only where there is one."""
    return [one for one in COLUMNS if one.field != "gpu_memory" or any(row.gpu_memory for row in found.rows)]


def best(found: Comparison, column: Column) -> set[str]:
    """Names of the models with the best number of a column, as it is shown; nobody where fewer than two have one.

    The reference does not take part in KL, which is 0 from itself.
    """
    shown = {
        row.name: float(_number(row, column))
        for row in found.rows
        if getattr(row, column.field) is not None and not (column.field == "divergence" and row.name == found.reference)
    }
    if not column.best or len(shown) < 2:
        return set()
    top = min(shown.values()) if column.best == "low" else max(shown.values())
    return {name for name, value in shown.items() if value == top}


def cell(row: Row, column: Column) -> str:
    """A number for a person, a dash where there is none."""
    if getattr(row, column.field) is None:
        return "-"
    if column.field == "score" and row.score_interval:
        return f"{_number(row, column)} ({row.score_interval[0]:.3f} to {row.score_interval[1]:.3f})"
    return _number(row, column)


def _number(row: Row, column: Column) -> str:
    value = getattr(row, column.field) / column.unit
    return f"{value:.{column.digits}f}" if value < 1e6 else f"{value:.3g}"


def lines(found: Comparison) -> list[str]:
    """The table for a terminal; * marks the best of a column."""
    held = columns(found)
    marked = {column.field: best(found, column) for column in held}
    table = [["model", "weights", "engine", *(f"{column.title} " for column in held)]]
    for row in found.rows:
        numbers = [cell(row, column) + ("*" if row.name in marked[column.field] else " ") for column in held]
        table.append([row.name, row.kind or "-", row.engine or "-", *numbers])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(_padded(line, widths)).rstrip() for line in table]


def _padded(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        text.ljust(width) if n < 3 else text.rjust(width)
        for n, (text, width) in enumerate(zip(line, widths, strict=True))
    ]


def reasons(found: Comparison) -> list[str]:
    """Why a number is missing."""
    return [
        f"{row.name}: no {stage}: {reason}" if stage != "loading" else f"{row.name}: {reason}"
        for row in found.rows
        for stage, reason in row.failed.items()
    ]
