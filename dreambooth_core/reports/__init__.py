"""Self-contained HTML pages: run report, comparison of two runs, galleries.

A page is one file that loads nothing; the content security policy of `page.html.j2` forbids connections.
Charts are Vega-Lite specifications (see `charts`), rendered by a copy of Vega in the page (see
`vega_bundle`).
"""

import base64
from functools import cache
from pathlib import Path
from typing import Any

from dreambooth_core.reports.charts import better

TEMPLATES = Path(__file__).parent / "templates"
OUTCOMES = {
    "promote": "Promote",
    "keep": "Do not promote",
    "inconclusive": "Inconclusive",
    None: "No decision",
}
"""Outcome of the gate -> label."""


def render(template: str, **values: Any) -> str:
    """Render a file of `templates/`; raises `UndefinedError` for a missing value."""
    return str(_environment().get_template(template).render(**values))


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    library = base64.b64encode((TEMPLATES / "vega.js.gz").read_bytes()).decode()
    environment.globals.update(
        outcomes=OUTCOMES,
        style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "page.js").read_text(encoding="utf-8")),
        charts_library=Markup(library),
    )
    environment.filters.update(number=number, signed=signed, seconds=seconds, better=better)
    return environment


def number(value: float | None) -> str:
    return "" if value is None else f"{value:z.3f}".replace("-", "−")


def signed(value: float | None) -> str:
    return "" if value is None else f"{value:+z.3f}".replace("-", "−")


def seconds(value: float | None) -> str:
    """`12.3 s`, `2 min 5 s` or `1 h 12 min`; empty for None."""
    if value is None:
        return ""
    if value < 60:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
