"""Pages for people: one file each, everything inside it, nothing fetched; light, dark, and narrow.

A page extends `page.html.j2`, whose content security policy forbids every connection. Its charts
are Vega-Lite specifications (see `charts`), drawn by Vega's own library, which lies here packed
(see `vega_bundle`) and is put into a page that has charts.
"""

import base64
from functools import cache
from pathlib import Path
from typing import Any

from dreambooth_core.reports.charts import better

HERE = Path(__file__).parent / "templates"
OUTCOMES = {
    "promote": "Promote",
    "keep": "Do not promote",
    "inconclusive": "Inconclusive",
    None: "Not judged",
}
"""What a verdict's outcome is called."""


def render(template: str, **values: Any) -> str:
    """The page of `template`, a file of `templates/`; raises `UndefinedError` for a missing value."""
    return str(_environment().get_template(template).render(**values))


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    packed = base64.b64encode((HERE / "vega.js.gz").read_bytes()).decode()
    environment.globals.update(
        outcomes=OUTCOMES,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
        charts_library=Markup(packed),
    )
    environment.filters.update(number=number, signed=signed, seconds=seconds, better=better)
    return environment


def number(value: float | None) -> str:
    return "" if value is None else f"{value:z.3f}".replace("-", "−")


def signed(value: float | None) -> str:
    return "" if value is None else f"{value:+z.3f}".replace("-", "−")


def seconds(value: float | None) -> str:
    """`12.3 s`, from a minute on `2 min 5 s`, from an hour on `1 h 12 min`."""
    if value is None:
        return ""
    if value < 60:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
