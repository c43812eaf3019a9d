"""The run's page: one self-contained HTML file, and run.png, the same as one picture.

Made from the files in the run folder (metrics.jsonl and the pictures), so it can be recreated at any time.
"""

from __future__ import annotations

import base64
import html
import json
import re
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .history import History

PAGE, PICTURE = "run.html", "run.png"


def write_page(run: Path, title: str | None = None) -> list[Path]:
    """Writes run.html, and run.png if matplotlib is installed, to a run folder; returns the files written.

    Raises ValueError if there is no run.
    """
    from .checkpoint import write_atomically  # imports torch, which a table of runs does not need

    history = History.read(run)
    title = title or f"{history.settings.get('model', 'run')}: {run.resolve().name}"
    written = []
    curves, missing = "", ""
    try:
        written.append(_draw(history, title))
        curves = _svg(history)
    except ImportError:
        missing = "The curves need matplotlib: pip install matplotlib, then fuelrail runs --pages."
    page = _page(history, title, curves, missing)
    write_atomically(run / PAGE, lambda file: file.write(page.encode()))
    return [run / PAGE, *written]


def headline(history: History) -> list[tuple[str, str]]:
    """The available key figures of a run, as names and texts."""
    found = []
    if (best := history.best) is not None:
        name, highest, epoch = best
        told = f"{highest:.2%}" if name.startswith("top") else f"{highest:.4g}"
        found.append((f"best {_NAMES.get(name, name)}", f"{told} (epoch {epoch})"))
    for name, label, form in _HEADLINE:
        if (value := history.mean(name)) is not None:
            found.append((label, form.format(value)))
    if (seconds := history.seconds) is not None:
        found.append(("time in epochs", duration(seconds)))
    return [*found, ("state", history.state)]


def duration(seconds: float) -> str:
    """`2 h 05 min`, `3 min 20 s`, `12.5 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def moment(seconds: float | None) -> str:
    """A time in this machine's time zone."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def worded(value: Any) -> str:
    """A setting as readable text."""
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _draw(history: History, title: str) -> Path:
    from .pictures import draw_overview

    target = history.path / PICTURE
    pairs = [*headline(history), ("started", moment(history.started)), *_versions(history)]
    pairs += [(name, worded(value)) for name, value in _said(history).items()]
    draw_overview(
        history.path / "metrics.jsonl", target, title, _columns(pairs), history.path / "samples.png"
    )
    return target


def _svg(history: History) -> str:
    """The curves as part of an HTML page."""
    from .pictures import draw_overview

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "run.svg"
        draw_overview(history.path / "metrics.jsonl", target, "")
        text = target.read_text(encoding="utf-8")
    # Without the header, whose document type contains a URL, and without the creator's note.
    text = text[text.index("<svg") :]
    return re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)


def _columns(pairs: list[tuple[str, str]], columns: int = 3, width: int = 53) -> str:
    """Names and values side by side, as plain text."""
    rows = -(-len(pairs) // columns)
    cells = [f"{name:<19.19} {_COMMIT.sub(_DIGITS, value)}" for name, value in pairs]
    cells = [cell if len(cell) < width else f"{cell[: width - 2]}…" for cell in cells]
    return "\n".join("".join(f"{cell:<{width}}" for cell in cells[row::rows]).rstrip() for row in range(rows))


def _versions(history: History) -> list[tuple[str, str]]:
    named = {"data": "data (fingerprint)", "code": "code (commit)"}
    return [
        (named.get(name, name), str(value)) for name, value in history.versions.items() if value is not None
    ]


def _said(history: History) -> dict[str, Any]:
    """Settings that were given, or that follow from the data, without the unset ones."""
    return {name: value for name, value in history.settings.items() if value not in (None, [], "", False)}


def _page(history: History, title: str, curves: str, missing: str) -> str:
    cards = "".join(
        f"<div class=card><b>{_text(value)}</b><span>{_text(name)}</span></div>"
        for name, value in headline(history)
    )
    parts = [
        f"<h1>{_text(title)}</h1><p class=faint>{_text(_when(history))}</p><div class=cards>{cards}</div>"
    ]
    parts.append(f"<div class=curves>{curves}</div>" if curves else f"<p>{_text(missing)}</p>")
    for name, caption in _PICTURES:
        if (history.path / name).is_file():
            content = base64.b64encode((history.path / name).read_bytes()).decode()
            parts.append(
                f'<h2>{_text(caption)}</h2><img alt="{_text(caption)}" src="data:image/png;base64,{content}">'
            )
    settings = sorted((name, worded(value)) for name, value in history.settings.items())
    parts.append("<h2>Versions</h2>" + _table(("", ""), _versions(history)))
    if history.epochs:
        parts.append("<h2>Epochs</h2>" + _epochs(history))
    parts.append(
        f"<details><summary>All {len(settings)} settings</summary>{_table(('', ''), settings)}</details>"
    )
    return _HTML.format(title=_text(title), body="\n".join(parts), style=_STYLE)


def _when(history: History) -> str:
    resumed = f", resumed {history.resumes} time{'s' * (history.resumes > 1)}" if history.resumes else ""
    ended = "ended" if history.ended else "last line"
    return f"started {moment(history.started)}{resumed}, {ended} {moment(history.last)}"


def _epochs(history: History) -> str:
    names = [name for name in history.epochs[-1] if name not in ("event", "step", "time", "epoch")]
    rows = [
        [str(line["epoch"] + 1), *("" if line.get(name) is None else f"{line[name]:.5g}" for name in names)]
        for line in history.epochs
    ]
    return _table(["epoch", *names], rows)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    top = "".join(f"<th>{_text(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class=wide><table><tr>{top}</tr>{body}</table></div>"


def _text(value: object) -> str:
    return html.escape(str(value))


#: A commit, shown by its first digits.
_DIGITS = r"\1"
_COMMIT = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{28}\b")
_NAMES = {"top1": "top-1", "top5": "top-5"}
_HEADLINE = (
    ("images_per_s", "images/s", "{:,.0f}"),
    ("fed", "of the time fed", "{:.1%}"),
    ("data_wait", "data wait", "{:.1%}"),
)
_PICTURES = (
    ("samples.png", "Training images, as the model saw them"),
    ("worst.png", "Held-out images that it is furthest from"),
    ("confusion.png", "Held-out images: truth against what the model says"),
)
_STYLE = """
body { margin: 2rem auto; max-width: 1120px; padding: 0 1rem; font: 15px/1.5 system-ui, sans-serif; color: #1c1e21; }
h1 { margin: 0; font-size: 1.6rem; } h2 { margin: 2rem 0 .5rem; font-size: 1.1rem; }
.faint { color: #6a7280; margin: 0; }
.cards { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.25rem 0; }
.card { border: 1px solid #dfe3e8; border-radius: 6px; padding: .5rem .9rem; }
.card b { display: block; font-size: 1.15rem; } .card span { color: #6a7280; font-size: .85rem; }
img, svg { max-width: 100%; height: auto; } .wide { overflow-x: auto; } details { margin: 2rem 0; }
table { border-collapse: collapse; font-size: .85rem; } th { text-align: left; color: #6a7280; font-weight: 500; }
td, th { padding: .15rem 1rem .15rem 0; border-bottom: 1px solid #eceef1; font-variant-numeric: tabular-nums; }
"""
_HTML = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{style}</style></head>
<body>
{body}
</body></html>
"""
