"""A run's history as one page that needs nothing else: loss, scores, learning rate and speed. Knows no trainer."""

import html
import io
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

History = Sequence[Mapping[str, Any]]
Curves = dict[str, list[tuple[float, float]]]
"""Name to points (step, value)."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{name}</title>
<style>body {{ font: 16px sans-serif; margin: 2em auto; max-width: 60em }} svg {{ width: 100%; height: auto }}</style>
</head><body><h1>{name}</h1>
{lines}
{drawing}
</body></html>
"""
_OF_ITS_OWN = frozenset({"eval_loss", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second"})


def write(history: History, folder: Path, best: int | None = None) -> Path:
    """Writes `curves.html`, in place of the one before.

    Args:
        history: what the trainer logged, as `state.log_history` of Transformers holds it.
        folder: of the run, whose name the page bears.
        best: the step of the best checkpoint.

    Raises:
        OSError: it cannot be written; the page before is still there.
    """
    charts = _charts(history)
    lines = [f"<p>{html.escape(line)}</p>" for line in _lines(history, charts, best)]
    name = html.escape(folder.resolve().name)
    page = PAGE.format(name=name, lines="\n".join(lines), drawing=_drawing(charts, best) if charts else "")
    file, part = folder / "curves.html", folder / ".curves.html.part"
    try:
        part.write_text(page, "utf-8", errors="replace")
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return file


def _charts(history: History) -> dict[str, Curves]:
    """Title to curves; those without a number are left out."""
    names = dict.fromkeys(name for logs in history for name in logs)
    scores = [name for name in names if name.startswith("eval_") and name not in _OF_ITS_OWN]
    charts = {
        "loss": {"training": _points(history, "loss"), "validation": _points(history, "eval_loss")},
        "scores on validation": {name.removeprefix("eval_"): _points(history, name) for name in scores},
        "learning rate": {"": _points(history, "learning_rate")},
        "tokens per second": {"": _points(history, "tokens_per_second")},
    }
    held = {title: {name: points for name, points in curves.items() if points} for title, curves in charts.items()}
    return {title: curves for title, curves in held.items() if curves}


def _points(history: History, name: str) -> list[tuple[float, float]]:
    return [
        (float(logs["step"]), float(logs[name]))
        for logs in history
        if isinstance(logs.get("step"), int) and _is_number(logs.get(name))
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _lines(history: History, charts: Mapping[str, Curves], best: int | None) -> list[str]:
    """What is said in words."""
    if not history:
        return ["Nothing was logged."]
    said = [f"Best checkpoint: checkpoint-{best}." if best else "No checkpoint was compared with another."]
    for title, curves in charts.items():
        last = [f"{name} {points[-1][1]:.4g}".strip() for name, points in curves.items()]
        said.append(f"Last {title}: {', '.join(last)}.")
    wrong = [
        logs.get("step") for logs in history if isinstance(logs.get("loss"), float) and not _is_number(logs["loss"])
    ]
    return [*said, *([f"The loss was no number at step {wrong[0]}."] if wrong else [])]


def _drawing(charts: Mapping[str, Curves], best: int | None) -> str:
    """An SVG element whose texts are texts."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns where the home folder cannot be written to
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot there is no display to be had

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "curves"}):
        figure = Figure(figsize=(9, 2.6 * len(charts)), layout="constrained")
        column = figure.subplots(len(charts), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (title, curves) in zip(column, charts.items(), strict=True):
            for name, points in curves.items():
                axes.plot(
                    *zip(*points, strict=True), label=name, marker="o" if len(points) < 40 else None, markersize=3
                )
            if best:
                axes.axvline(best, color="grey", linestyle=":", linewidth=1)
            if any(curves):
                axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
            axes.set_title(title, loc="left")
            axes.grid(alpha=0.3)
        column[-1].set_xlabel("step")
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]
