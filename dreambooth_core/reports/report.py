"""The report: one HTML page with everything inside it, for looking and for passing on."""

from typing import Any

import yaml

from dreambooth_core import reports
from dreambooth_core.config import Config
from dreambooth_core.config.credentials import without_password
from dreambooth_core.data.contact_sheets import EMBEDDED_SIDE
from dreambooth_core.diffusion.base_model import base_digest
from dreambooth_core.diffusion.exports import possible
from dreambooth_core.digests import digest_of
from dreambooth_core.errors import NotFound
from dreambooth_core.metrics import catalogue
from dreambooth_core.metrics.statistics import rows_of
from dreambooth_core.reports import charts
from dreambooth_core.reports.facts import (
    ReportFacts,
    Rows,
    facts_of,
    prompt_literal,
    prompt_means,
    sides_of,
)
from dreambooth_core.reports.image_grids import PageImages
from dreambooth_core.reports.summary import StageResults, run_id
from dreambooth_core.storage.blobs import blob_key, put_blob
from dreambooth_core.storage.checkpoint_manifests import checkpoints_of
from dreambooth_core.storage.code_version import code_digest, code_version
from dreambooth_core.storage.records import (
    Blob,
    Document,
    ImageScores,
    Permission,
    Scores,
    Stage,
    Weights,
    config_digest,
    permissions_of,
)
from dreambooth_core.storage.stage_cache import cached_stage
from dreambooth_core.storage.stores import Store, written_beside
from dreambooth_core.tracking.learning_curves import curves_of
from dreambooth_core.tracking.mlflow import log_report

TILES = ("prompt_fidelity", "prior_drift", "memorisation")
"""Metrics that stand at the top, behind the one that the gate decides by."""
WEAKEST = ("identity", "subject_fidelity", "prompt_fidelity")
"""Metrics whose worst images are shown; the second stands in for the first."""


def write_report(
    config: Config, store: Store, results: StageResults, stages: dict[str, Stage]
) -> tuple[Document, bool]:
    """The page of a run whose other stages are done, in the store and at its local place.

    Results that are the same find the page that was written for them, timings and all.
    """
    name = run_id(config, results)
    key = f"reports/{name}/report.html"
    path = config.paths.work.resolve() / "reports" / name / "report.html"
    found = (results.classes, results.samples, results.verdict)
    inputs = {
        "run": name,
        "storage": config.storage.uri,
        "results": [made.digest if made else None for made in found],
        "version": results.version,
        "form": 2,  # of what is kept
    }
    uri = f"{store.uri}/{key}"

    def make(_: str) -> Document:
        page = render(config, store, results, stages).encode()
        return Document(uri=uri, digest=put_blob(store, page).sha256, path=str(path))

    document, reused = cached_stage(store, "report", inputs, Document, make)
    page = store.get(blob_key(Blob(sha256=document.digest, size=0)))
    if not _is(document, _stored(store, key)):
        # new, or that of the run when its version had other aliases
        if results.version:
            log_report(config, results.version.run_id, page.decode(), uri, str(path))
        store.put(key, page)  # last: what is there counts as told
    if not path.is_file() or not _is(document, path.read_bytes()):
        with written_beside(path) as temporary:
            temporary.write_bytes(page)
    return document.model_copy(update={"path": str(path)}), reused


def render(config: Config, store: Store, results: StageResults, stages: dict[str, Stage]) -> str:
    """The page as HTML; raises `ValueError` when a result is missing.

    Without a verdict, or with scores that kept no table of their images, the page says so.
    """
    scores, champion = _judged(results)
    if not (results.intake and results.weights and scores and results.samples and results.version):
        raise ValueError("a report needs the results of all other stages")
    sides = sides_of(_rows(store, scores), _rows(store, champion))
    facts = facts_of(config, results, scores, champion, sides)
    return reports.render(
        "report.html.j2",
        charts=True,
        small=config.model.resolution <= EMBEDDED_SIDE // 2,
        config=config,
        results=results,
        scores=scores,
        champion=results.verdict.against if results.verdict and champion else None,
        facts=facts,
        numbers=_numbers(config, facts, sides),
        pictures=_pictures(store, results, scores, champion, sides),
        learning=_learning(config, results.weights),
        stages=stages,
        prompt=prompt_literal(config),
        formats=possible(config.model.family, results.weights.method),
        lineage=_lineage(config, store, results),
        document=without_password(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)),
    )


def _judged(results: StageResults) -> tuple[Scores | None, Scores | None]:
    """The scores to show, of the gate's last round if there was one, and the champion's."""
    verdict = results.verdict
    return (verdict.candidate, verdict.champion) if verdict else (results.scores, None)


def _rows(store: Store, scores: Scores | None) -> tuple[ImageScores, ...]:
    return rows_of(store, scores) if scores else ()


def _numbers(config: Config, facts: ReportFacts, sides: Rows) -> dict[str, Any]:
    """What stands in tables and charts."""
    lines = {line.metric: line for line in facts.lines}
    titles = {name: line.title for name, line in lines.items()}
    deciding = [name for name in config.gate.primary if name in lines][:1]
    first = list(dict.fromkeys([*deciding, *(name for name in TILES if name in lines), *lines]))
    means = prompt_means(sides)
    return {
        "tiles": [lines[name] for name in first[:4]],
        "titles": titles,
        "shown": [side for side in charts.SIDES if any(side in line.sides for line in facts.lines)],
        "gains": charts.gain_chart(facts.comparisons, titles) if facts.comparisons else None,
        "means": means,
        "measured": [name for name in titles if any(name in found for found in means.values())],
        "dots": charts.prompt_chart(means, titles, config.subject.fill),
    }


def _pictures(
    store: Store, results: StageResults, scores: Scores, champion: Scores | None, sides: Rows
) -> dict[str, Any]:
    show, rows = PageImages(store), sides.get("candidate", ())
    photos = results.intake.images if results.intake else None
    named = dict.fromkeys(name for name in WEAKEST if name in scores.metrics)
    if "identity" in named:
        named.pop("subject_fidelity", None)
    return {
        "photos": show.some(photos.images) if photos else [],
        "prompts": show.prompts(scores, champion, sides),
        "class": show.classes(scores, champion, sides),
        "copies": show.copies(scores, rows, photos) if photos else [],
        "weakest": [show.weakest(scores, rows, catalogue()[name]) for name in named]
        if rows
        else [],
        "class_images": show.some(results.classes.images) if results.classes else [],
        "samples": show.grid(results.samples) if results.samples else {},
    }


def _learning(config: Config, weights: Weights) -> dict[str, Any]:
    """Learning curves, and the looks again in numbers."""
    curves = curves_of(weights)
    looked = {
        name: dict(points) for name, points in curves.items() if name.startswith("validation/")
    }
    titles = {name: _title(config, name.removeprefix("validation/")) for name in looked}
    drawn: dict[str, charts.Chart | None] = {
        titles[name]: charts.look_chart(titles[name], curves[name], weights.chosen_step)
        for name in looked
    }
    drawn |= {"loss": charts.loss_chart(curves), "learning rate": charts.rate_chart(curves)}
    steps = sorted({step for points in looked.values() for step in points})
    return {
        "curves": {title: chart for title, chart in drawn.items() if chart},
        "titles": list(titles.values()),
        "looks": {step: [points.get(step) for points in looked.values()] for step in steps},
    }


def _title(config: Config, looked: str) -> str:
    """That of the metric by which a look sees it, or its name in words."""
    alone = looked == "subject_fidelity" and config.evaluation.detector.kind is not None
    metric = catalogue().get("subject_fidelity_crop" if alone else looked)
    return metric.title if metric else looked.replace("_", " ")


def _lineage(config: Config, store: Store, results: StageResults) -> list[tuple[str, str, str]]:
    """What was made from what: name, digest or what is known, and where it lies."""
    base = config.model.base + (f" @ {config.model.revision}" if config.model.revision else "")
    named = {
        "instance images": results.intake.images if results.intake else None,
        "class images": results.classes,
        "weights": results.weights,
        "scores": results.scores,
        "verdict": results.verdict,
        "samples": results.samples,
    }
    weights = results.weights
    steps = checkpoints_of(store, weights.key) if weights else ()
    return [
        ("base", base_digest(config.model), base),
        *([("licence of the base", config.model.licence, "")] if config.model.licence else []),
        *(row for told in permissions_of(config) for row in _permission(told)),
        ("config", config_digest(config), ""),
        ("code", code_digest(), code_version()),
        *((name, made.digest, made.uri) for name, made in named.items() if made),
        *([("code that trained", weights.code, "")] if weights and weights.code else []),
        *((f"checkpoint of step {step.step}", step.digest, "") for step in steps),
        *([("MLflow run", results.version.run_id, "")] if results.version else []),
    ]


def _permission(told: Permission) -> list[tuple[str, str, str]]:
    return [
        (f"provenance of {told.subject}", told.provenance or "not said", ""),
        (f"consent for {told.subject}", told.consent or "not said", ""),
    ]


def _stored(store: Store, key: str) -> bytes:
    """Nothing where there is nothing."""
    try:
        return store.get(key)
    except NotFound:
        return b""


def _is(document: Document, page: bytes) -> bool:
    return digest_of(page) == document.digest
