"""Model cards: what a person must know of a version before using it, in Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from dreambooth_core.config import Config
from dreambooth_core.config.results import PRIMARY
from dreambooth_core.diffusion import exports
from dreambooth_core.metrics import catalogue
from dreambooth_core.registry.aliases import AliasLog
from dreambooth_core.registry.provenance import Provenance, RunInputs
from dreambooth_core.reports.facts import prompt_literal
from dreambooth_core.storage.blobs import get_blob
from dreambooth_core.storage.records import ImageScores, Scores, ScoreTable, Verdict
from dreambooth_core.storage.stores import Store
from dreambooth_core.tracking.mlflow import has_run

WORST = 3
"""Images shown that score lowest."""
PROMPTS = ("prompt_fidelity",)
"""Of these, and of what gates decide by, the first one that was measured says which images fail."""
COMFY = {
    "lora_comfy": "models/loras/",
    "lora_kohya": "models/loras/",
    "embedding": "models/embeddings/",
    "single_file": "models/checkpoints/",
}
"""Exports that ComfyUI reads -> its folder for them."""
FILE = "model_card.md"
SAID = 4000
"""Characters of a verdict in a version's description, of which MLflow's tables hold 5000."""


@dataclass(frozen=True)
class FailedImage:
    """An image that came out badly."""

    prompt: str
    seed: int
    title: str
    value: float


@dataclass(frozen=True)
class CardInputs:
    """All that a card tells of."""

    origin: Provenance
    found: RunInputs
    verdict: Verdict | None = None

    @property
    def scores(self) -> Scores:
        """Of the gate's last round, if there was one."""
        return self.verdict.candidate if self.verdict else self.found.scores


def publish(client: Any, book: AliasLog, told: CardInputs) -> str:
    """Write the version's card into the store, to its run, and link it in its description.

    The card of before gives way; its URI.
    """
    origin, verdict = told.origin, told.verdict
    text = render(book.store, told)
    key = _place(book, origin.version)
    book.store.put(key, text.encode())
    if has_run(client, origin.run_id):
        client.log_text(origin.run_id, text, FILE)
    uri = f"{book.store.uri}/{key}"
    said = verdict.sentence[:SAID] if verdict else "The gate was not asked yet."
    client.update_model_version(
        book.name, origin.version, f"{said}\n\nModel card: `{FILE}` of the run, stored at `{uri}`"
    )
    return uri


def read_card(book: AliasLog, version: str) -> str:
    """A version's card as it was written last; raises `NotFound`."""
    return book.store.get(_place(book, version)).decode()


def render(store: Store, told: CardInputs) -> str:
    """The card as Markdown."""
    config, found, rows = told.origin.config, told.found, _rows(store, told.scores)
    return str(
        _template().render(
            origin=told.origin,
            config=config,
            found=found,
            verdict=told.verdict,
            warnings=told.scores.warnings,
            metrics=_metrics(told.scores),
            failures=_failures(config, rows),
            copies=sum(row.resembles is not None for row in rows),
            prompt=prompt_literal(config),
            comfy=_comfy(config, found),
        )
    )


def _place(book: AliasLog, version: str) -> str:
    return f"{book.place}/cards/{version}.md"


def _metrics(scores: Scores) -> list[Mapping[str, Any]]:
    known = catalogue()
    return [
        {
            "title": known[name].title if name in known else name.replace("_", " "),
            "better": "higher" if name not in known or known[name].higher_is_better else "lower",
            "value": value,
            "interval": scores.estimates.get(name),
            "base": scores.base_metrics.get(name),
        }
        for name, value in scores.metrics.items()
    ]


def _rows(store: Store, scores: Scores) -> tuple[ImageScores, ...]:
    if scores.table is None:
        return ()
    return ScoreTable.model_validate_json(get_blob(store, scores.table)).rows


def _failures(config: Config, rows: Sequence[ImageScores]) -> list[FailedImage]:
    """The images with the lowest identity, then those with the lowest prompt fidelity."""
    known, failures = catalogue(), []
    for names in (PRIMARY, PROMPTS):
        name = next((name for name in names if any(name in row.scores for row in rows)), None)
        if name is None:
            continue
        asked = [row for row in rows if row.kind != "class" and name in row.scores]
        worst = sorted(asked, key=lambda row: (row.scores[name], row.prompt, row.seed))[:WORST]
        title = known[name].title if name in known else name
        failures += [
            FailedImage(config.subject.fill(row.prompt), row.seed, title, row.scores[name])
            for row in worst
        ]
    return failures


def _comfy(config: Config, found: RunInputs) -> list[tuple[str, str]]:
    """Export -> ComfyUI's folder for it, of those that can hold such a model."""
    possible = exports.possible(config.model.family, found.weights.method)
    return [(name, folder) for name, folder in COMFY.items() if name in possible]


@lru_cache(1)
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["number"] = lambda value: "" if value is None else f"{value:.3f}"
    environment.filters["line"] = lambda text: " ".join(str(text).split()).replace("|", "\\|")
    return environment.get_template("card.md.j2")
