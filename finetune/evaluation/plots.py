"""A comparison as one page that needs nothing else: its table, and what each model costs for what it gives."""

import html
import io
import logging
from collections.abc import Sequence
from typing import Any

from finetune.evaluation import table
from finetune.evaluation.compare import Comparison, Row

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body {{ font: 16px sans-serif; margin: 2em auto; max-width: 70em }} svg {{ width: 100%; height: auto }}
table {{ border-collapse: collapse }} td, th {{ padding: .3em .8em; text-align: right; border-bottom: 1px solid #ddd }}
td:nth-child(-n+3), th:nth-child(-n+3) {{ text-align: left }} .best {{ font-weight: bold }}</style>
</head><body><h1>{title}</h1>
{table}
{lines}
{drawing}
</body></html>
"""
SIZE = "size on disk, MB"
KL = "KL divergence from the reference, nats"
CHARTS = (
    ("size", "divergence", SIZE, KL),
    ("size", "score", SIZE, "score"),
    ("generation_tokens_per_second", "divergence", "tokens written a second", KL),
)


Point = tuple[float, float, str, str]
"""Across, up, the model's name, and its colour, the same in every chart."""


def page(found: Comparison, lines: Sequence[str], title: str = "Models compared") -> str:
    """An HTML page.

    Args:
        found: what was measured.
        lines: what is said of it in words.
        title: of the page.
    """
    said = [f"<p>{html.escape(line)}</p>" for line in (*lines, *table.reasons(found))]
    charts = [(chart, _points(found.rows, *chart[:2])) for chart in CHARTS]
    held = [(chart, points) for chart, points in charts if points]
    return PAGE.format(
        title=html.escape(title), table=_table(found), lines="\n".join(said), drawing=_drawing(held) if held else ""
    )


def _table(found: Comparison) -> str:
    held = table.columns(found)
    head = "".join(
        f"<th>{html.escape(text)}</th>" for text in ("model", "weights", "engine", *(one.title for one in held))
    )
    marked = {one.field: table.best(found, one) for one in held}
    rows = []
    for row in found.rows:
        words = "".join(f"<td>{html.escape(text)}</td>" for text in (row.name, row.kind or "-", row.engine or "-"))
        best = {one.field: ' class="best"' if row.name in marked[one.field] else "" for one in held}
        numbers = "".join(f"<td{best[one.field]}>{table.cell(row, one)}</td>" for one in held)
        rows.append(f"<tr>{words}{numbers}</tr>")
    return f"<table><tr>{head}</tr>\n" + "\n".join(rows) + "</table>"


def _points(rows: Sequence[Row], across: str, up: str) -> list[Point]:
    """Of the models that have both numbers; sizes in MB."""
    unit = 1e6 if across == "size" else 1.0
    return [
        (getattr(row, across) / unit, getattr(row, up), row.name, f"C{number}")
        for number, row in enumerate(rows)
        if None not in (getattr(row, across), getattr(row, up))
    ]


def _drawing(charts: Sequence[tuple[tuple[str, ...], list[Point]]]) -> str:
    """An SVG element whose texts are texts."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns where the home folder cannot be written to
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot there is no display to be had

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "compare"}):
        figure = Figure(figsize=(10, 4.2 * len(charts)), layout="constrained")
        column = figure.subplots(len(charts), 1, squeeze=False)[:, 0]
        for axes, ((_, up, x, y), points) in zip(column, charts, strict=True):
            _scatter(axes, points, up == "divergence")
            axes.set_xlabel(x)
            axes.set_ylabel(y)
            axes.grid(alpha=0.3)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]


def _scatter(axes: Any, points: Sequence[Point], orders: bool) -> None:
    """Points with their names; by orders of magnitude above the smallest, where the reference's 0 has its place."""
    heights = [y for _, y, *_ in points]
    above = [y for y in heights if y > 0]
    axes.margins(0.1)
    if orders and above:
        axes.set_yscale("symlog", linthresh=min(above))
        axes.set_ylim(0, 2 * max(above))
        axes.yaxis.set_major_formatter("{x:g}")
    middle = (min(points)[0] + max(points)[0]) / 2
    for number, (x, y, name, colour) in enumerate(sorted(points)):  # neighbours' names above and below in turn
        side, way = ("right", -6) if x > middle else ("left", 6)
        lift = 6 if number % 2 or y == min(heights) else -12
        axes.plot(x, y, "o", color=colour, clip_on=False)
        axes.annotate(name, (x, y), (way, lift), textcoords="offset points", ha=side, parse_math=False)
