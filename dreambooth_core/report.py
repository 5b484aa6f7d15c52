"""The report: one HTML page with everything inside it, for looking and for passing on."""

import base64
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from dreambooth_core import records
from dreambooth_core.bases import base_digest
from dreambooth_core.blobs import digest_of, get_blob
from dreambooth_core.charts import loss_chart
from dreambooth_core.config import Config
from dreambooth_core.errors import NotFound
from dreambooth_core.records import Document, ImageSet, Stage
from dreambooth_core.sheets import by_prompt, thumbnail
from dreambooth_core.stages import once
from dreambooth_core.storage import Store, written_beside
from dreambooth_core.summary import Results, run_id
from dreambooth_core.tracking import link_report

SIDE = 256
"""Pixels above which an image is embedded smaller."""
MOST = 24
"""Photos or class images shown of one set."""
METRICS = {
    "subject_fidelity": ("Subject fidelity", "identity encoder, higher is better"),
    "clip_i": ("CLIP-I", "looks alike, higher is better"),
    "prompt_fidelity": ("Prompt fidelity", "CLIP-T, higher is better"),
    "prior_drift": ("Prior drift", "0 is the untouched base, lower is better"),
}


def write_report(
    config: Config, store: Store, results: Results, stages: dict[str, Stage]
) -> tuple[Document, bool]:
    """The page of a run whose other stages are done, in the store and at its local place.

    Results that are the same find the page that was written for them, timings and all.
    """
    name = run_id(config, results)
    key = f"reports/{name}/report.html"
    path = config.paths.work.resolve() / "reports" / name / "report.html"
    digests = (results.classes, results.samples)
    inputs = {
        "run": name,
        "storage": config.storage.uri,
        "images": [made.digest if made else None for made in digests],
        "version": results.version,
    }

    def make(_: str) -> Document:
        page = render(config, store, results, stages).encode()
        store.put(key, page)
        if results.version:
            link_report(config, results.version.run_id, f"{store.uri}/{key}", str(path))
        return Document(uri=f"{store.uri}/{key}", digest=digest_of(page), path=str(path))

    document, reused = once(store, "report", inputs, Document, make)
    _bring(store, key, document, path)
    return document.model_copy(update={"path": str(path)}), reused


def render(config: Config, store: Store, results: Results, stages: dict[str, Stage]) -> str:
    """The page as HTML; raises `ValueError` when a result is missing."""
    intake, weights, scores = results.intake, results.weights, results.scores
    if not (intake and weights and scores and results.samples and results.version):
        raise ValueError("a report needs the results of all other stages")
    show = _Shown(store)
    return _page(
        title=f"{config.name}: {config.subject.identifier} {config.subject.class_noun}",
        config=config,
        run=run_id(config, results),
        version=results.version,
        photos=show.some(intake.images.images),
        photo_count=intake.images.count,
        findings=intake.validation.findings,
        rows=show.pairs(scores.samples, scores.base_samples),
        drift=show.pairs(scores.class_samples, scores.base_class_samples),
        samples=show.rows(results.samples),
        classes=show.some(results.classes.images) if results.classes else [],
        class_count=results.classes.count if results.classes else 0,
        metrics=_metrics(scores),
        chart=loss_chart(weights.losses),
        weights=weights,
        base_digest=base_digest(config.model),
        lineage=_lineage(results),
        stages=stages,
        document=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False),
    )


def data_url(png: bytes) -> str:
    """A small PNG as it is, a large one as a thumbnail."""
    return "data:image/png;base64," + base64.b64encode(thumbnail(png, SIDE)).decode()


class _Shown:
    """Images of a store as the template wants them: source, what to say when pointed at."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def one(self, image: records.Image) -> dict[str, str]:
        seed = "" if image.seed is None else f", seed {image.seed}"
        about = f"{image.prompt or image.name}{seed}"
        return {"src": data_url(get_blob(self._store, image.blob)), "about": about}

    def some(self, images: Sequence[records.Image]) -> list[dict[str, str]]:
        return [self.one(image) for image in images[:MOST]]

    def rows(self, made: ImageSet) -> list[dict[str, Any]]:
        grouped = by_prompt(made.images)
        return [{"prompt": prompt, "images": self.some(row)} for prompt, row in grouped.items()]

    def pairs(self, tuned: ImageSet, base: ImageSet) -> list[dict[str, Any]]:
        """One entry per prompt, with the images of both for the same seeds."""
        other = by_prompt(base.images)
        return [
            {"prompt": prompt, "tuned": self.some(row), "base": self.some(other.get(prompt, []))}
            for prompt, row in by_prompt(tuned.images).items()
        ]


def _metrics(scores: records.Scores) -> list[dict[str, Any]]:
    rows = []
    for name in sorted(scores.metrics, key=lambda n: [*METRICS, n].index(n)):
        title, about = METRICS.get(name, (name.replace("_", " ").capitalize(), ""))
        rows.append(
            {
                "title": title,
                "about": about,
                "tuned": scores.metrics[name],
                "base": scores.base_metrics.get(name),
                "photos": scores.reference.get(name),
            }
        )
    return rows


def _lineage(results: Results) -> list[tuple[str, str, str]]:
    named = {
        "instance images": results.intake.images if results.intake else None,
        "class images": results.classes,
        "weights": results.weights,
        "scores": results.scores,
        "samples": results.samples,
    }
    return [(name, made.digest, made.uri) for name, made in named.items() if made]


def _bring(store: Store, key: str, document: Document, path: Path) -> None:
    """Put the page at its local place, unless it is there: it may have been deleted since."""
    if path.is_file() and digest_of(path.read_bytes()) == document.digest:
        return
    try:
        page = store.get(key)
    except NotFound:
        return
    with written_beside(path) as temporary:
        temporary.write_bytes(page)


def _page(**values: Any) -> str:
    return str(_template().render(**values))


@lru_cache(1)
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=here, autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["number"] = lambda value: "" if value is None else f"{value:.3f}"
    return environment.get_template("report.html.j2")
