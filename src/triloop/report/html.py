"""A run as one HTML file that works offline: no script, no request, every text of the run escaped."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from triloop.errors import StoreError
from triloop.report.charts import curves, hero
from triloop.report.facts import configuration, environment, lineage
from triloop.report.headline import banner, headline, tiles, title
from triloop.report.markup import esc
from triloop.report.samples import samples
from triloop.report.view import RunView, read
from triloop.report.watch import guards
from triloop.store import Run

__all__ = ["NAME", "POLICY", "page", "render", "write"]

NAME = "report.html"

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Nothing may be loaded, run or sent, even if an escape were missing."""


def write(folder: Path | str) -> Path:
    """Write ``report.html`` into a run's folder, whole or not at all. Raises RunFolderError or StoreError."""
    with Run.open(folder, write=False) as run:
        text = render(run)
    target = Path(folder) / NAME
    temporary = target.with_name(f".{NAME}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(
            f"{target} cannot be written ({error.strerror}); free space or check the permissions"
        ) from error
    return target


def render(run: Run) -> str:
    """The page of a run in any state: no round yet, unfinished, stopped by a guard, finished."""
    return page(read(run))


def page(view: RunView) -> str:
    """The page as text; the same view gives the same page."""
    style = resources.files("triloop.report").joinpath("style.css").read_text(encoding="utf-8")
    sections = [
        ("samples", "Samples", samples(view)),
        ("curves", "Curves", curves(view)),
        ("guards", "Guards", guards(view)),
        ("lineage", "Lineage", lineage(view)),
        ("configuration", "Configuration", configuration(view)),
        ("environment", "Environment", environment(view)),
    ]
    links = "".join(f'<a href="#{id}">{name}</a>' for id, name, body in sections if body)
    body = "".join(body for _, _, body in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f"<title>{esc(title(view))}</title><style>{style}</style></head><body>"
        f'<nav aria-label="Parts of the page"><b>Triloop</b>{links}</nav>'
        f"<main>{headline(view)}{banner(view)}"
        f'<div class="top">{hero(view)}{tiles(view)}</div>{body}</main>'
        f'<footer class="end">{esc(view.name)} · made by Triloop from run.db; this file loads nothing.</footer>'
        "</body></html>\n"
    )
