"""Two runs on one page: their numbers in one table, their reports side by side."""

from html import escape
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from pydantic import ValidationError

from dreambooth_core.errors import ConfigError
from dreambooth_core.storage import written_beside
from dreambooth_core.summary import Summary

STYLE = """
:root { color-scheme: light dark; }
body { margin: 0; padding: 20px; font: 15px/1.5 system-ui, sans-serif;
  background: light-dark(#f7f6f3, #16171a); color: light-dark(#1d1f23, #e9e8e4); }
table { border-collapse: collapse; margin: 0 auto 20px; }
th, td { padding: 5px 16px; text-align: right; border-bottom: 1px solid #8886; }
th:first-child, td:first-child { text-align: left; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 12px; }
iframe { width: 100%; height: 85vh; border: 1px solid #8886; border-radius: 10px; }
"""


def compare_runs(left: Path, right: Path, out: Path) -> Path:
    """Write the page to `out`; raises `ConfigError` for what is no finished run's summary."""
    runs = [_read(left), _read(right)]
    names = sorted({name for summary, _ in runs for name in summary.metrics})
    rows = "".join(_row(name, [summary for summary, _ in runs]) for name in names)
    head = "".join(f"<th>{escape(summary.run_id)}</th>" for summary, _ in runs)
    frames = "".join(
        f'<iframe title="{escape(summary.run_id)}" srcdoc="{escape(page)}"></iframe>'
        for summary, page in runs
    )
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Two runs</title>'
        f"<style>{STYLE}</style><table><tr><th>metric</th>{head}<th>base</th></tr>{rows}</table>"
        f'<div class="two">{frames}</div></html>'
    )
    with written_beside(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out


def _read(place: Path) -> tuple[Summary, str]:
    file = place / "summary.json" if place.is_dir() else place
    try:
        summary = Summary.model_validate_json(file.read_bytes())
        report = Path(url2pathname(urlparse(summary.artifacts["report"]).path))
        beside = file.with_name("report.html")
        return summary, (beside if beside.is_file() else report).read_text(encoding="utf-8")
    except (OSError, KeyError, ValidationError) as error:
        raise ConfigError(
            f"{file} is no summary of a finished run with its report: "
            "name reports/<run id>/summary.json"
        ) from error


def _row(name: str, summaries: list[Summary]) -> str:
    values = [summary.metrics.get(name) for summary in summaries]
    values.append(summaries[0].base_metrics.get(name))
    cells = "".join(f"<td>{'' if v is None else f'{v:.3f}'}</td>" for v in values)
    return f"<tr><td>{escape(name.replace('_', ' '))}</td>{cells}</tr>"
