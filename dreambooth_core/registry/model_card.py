"""Model cards in Markdown: data, licence, consent, scores, known failures, how to load a version."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from dreambooth_core.config import Config
from dreambooth_core.config.results import PRIMARY
from dreambooth_core.diffusion import exports
from dreambooth_core.metrics import catalogue
from dreambooth_core.metrics.statistics import rows_of
from dreambooth_core.registry.aliases import AliasLog
from dreambooth_core.registry.provenance import Provenance, RunInputs
from dreambooth_core.reports.facts import prompt_literal
from dreambooth_core.storage.records import ImageScores, Scores, Verdict
from dreambooth_core.storage.stores import Store
from dreambooth_core.tracking.mlflow import has_run

WORST = 3
"""Number of lowest-scoring images listed per metric."""
PROMPTS = ("prompt_fidelity",)
"""Prompt metrics, the first measured one of which ranks images; `PRIMARY` are those of identity."""
COMFY = {
    "lora_comfy": "models/loras/",
    "lora_kohya": "models/loras/",
    "embedding": "models/embeddings/",
    "single_file": "models/checkpoints/",
}
"""Export format that ComfyUI reads -> ComfyUI's folder for it."""
FILE = "model_card.md"
MAX_SENTENCE = 4000
"""Characters of a verdict in a version's description, which MLflow limits to 5000."""


@dataclass(frozen=True)
class FailedImage:
    """An image with a low score."""

    prompt: str
    seed: int
    title: str
    value: float


@dataclass(frozen=True)
class CardInputs:
    """Records that a card is made from."""

    provenance: Provenance
    inputs: RunInputs
    verdict: Verdict | None = None

    @property
    def scores(self) -> Scores:
        """Scores of the gate's last round, else of the evaluation."""
        return self.verdict.candidate if self.verdict else self.inputs.scores


def publish(client: Any, log: AliasLog, card: CardInputs) -> str:
    """Write the card to the store and the MLflow run, link it in the version's description; its URI."""
    provenance, verdict = card.provenance, card.verdict
    text = render(log.store, card)
    key = _key(log, provenance.version)
    log.store.put(key, text.encode())
    if has_run(client, provenance.run_id):
        client.log_text(provenance.run_id, text, FILE)
    uri = f"{log.store.uri}/{key}"
    sentence = verdict.sentence[:MAX_SENTENCE] if verdict else "No verdict of the gate yet."
    text = f"{sentence}\n\nModel card: `{FILE}` of the run, stored at `{uri}`"
    client.update_model_version(log.name, provenance.version, text)
    return uri


def read_card(log: AliasLog, version: str) -> str:
    """The stored card of a version; raises `NotFound`."""
    return log.store.get(_key(log, version)).decode()


def render(store: Store, card: CardInputs) -> str:
    """The card as Markdown."""
    config, rows = card.provenance.config, rows_of(store, card.scores)
    return str(
        _template().render(
            provenance=card.provenance,
            config=config,
            inputs=card.inputs,
            verdict=card.verdict,
            warnings=card.scores.warnings,
            metrics=_metrics(card.scores),
            failures=_failures(config, rows),
            copies=sum(row.resembles is not None for row in rows),
            prompt=prompt_literal(config),
            comfy=_comfy(config, card.inputs),
        )
    )


def _key(log: AliasLog, version: str) -> str:
    return f"{log.prefix}/cards/{version}.md"


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


def _failures(config: Config, rows: Sequence[ImageScores]) -> list[FailedImage]:
    """Images with the lowest identity score, then those with the lowest prompt fidelity."""
    known, failures = catalogue(), []
    for names in (PRIMARY, PROMPTS):
        name = next((name for name in names if any(name in row.scores for row in rows)), None)
        if name is None:
            continue
        scored = [row for row in rows if row.kind != "class" and name in row.scores]
        worst = sorted(scored, key=lambda row: (row.scores[name], row.prompt, row.seed))[:WORST]
        title = known[name].title if name in known else name
        failures += [
            FailedImage(config.subject.fill(row.prompt), row.seed, title, row.scores[name])
            for row in worst
        ]
    return failures


def _comfy(config: Config, inputs: RunInputs) -> list[tuple[str, str]]:
    """Export formats that support the model, with ComfyUI's folders."""
    possible = exports.possible(config.model.family, inputs.weights.method)
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
