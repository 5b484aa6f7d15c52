"""Output of runs, plans, configs and benchmarks: tables or JSON."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from dreambooth_core import plugins
from dreambooth_core.cli.bench import dreambench
from dreambooth_core.cli.output import print_json, print_table, stdout_console
from dreambooth_core.config import Config, recipe_file, recipe_names
from dreambooth_core.data import dataset
from dreambooth_core.data.references import uses_versions, with_folders
from dreambooth_core.diffusion import families
from dreambooth_core.errors import DatasetRefused
from dreambooth_core.reports.summary import Summary
from dreambooth_core.servers.local import local_services
from dreambooth_core.storage.stores import open_store
from dreambooth_core.training.standalone import TrainingPlan, TrainingResult

if TYPE_CHECKING:
    from dreambooth_core.cli.photo_views import ShownMasks

TESTED = "trained, exported and loaded again with tiny random weights"
"""Coverage of tests/dreambooth_core/training/test_methods.py, for every family and method."""


def show_summary(summary: Summary) -> None:
    """Stages, metrics with intervals and the base's values, the gate's reasons, and the report's path."""
    stages = [[name, s.status, f"{s.seconds:.1f} s"] for name, s in summary.stages.items()]
    print_table(f"Run {summary.run_id}", ("stage", "status", "time"), stages)
    base = {name: f"{value:.3f}" for name, value in summary.base_metrics.items()}
    rows = [
        [name.replace("_", " "), f"{value:.3f}", _interval(summary, name), base.get(name, "")]
        for name, value in summary.metrics.items()
    ]
    print_table("", ("metric", "tuned", "95 % interval", "base"), rows)
    if summary.model:
        aliases = "".join(f" @{alias}" for alias in summary.model.aliases)
        print(f"Model    {summary.model.name}, version {summary.model.version}{aliases}")
    for warning in summary.warnings:
        print(f"Warning  {warning}")
    if summary.gate:
        print(f"Gate     {summary.gate.outcome}: {summary.gate.sentence}")
        for reason in summary.gate.reasons:
            print(f"         {reason.outcome}, {reason.rule}: {reason.sentence}")
    if all(stage.status in ("reused", "skipped") for stage in summary.stages.values()):
        print("Reused   all stages: no input has changed")
    print(f"Report   {summary.artifacts.get('report', '').removeprefix('file://')}")


def _interval(summary: Summary, metric: str) -> str:
    """Ends of the metric's interval; empty without one, as for a single prompt."""
    found = summary.estimates.get(metric)
    if found is None or found.low is None or found.high is None:
        return ""
    return f"{found.low:.3f} to {found.high:.3f}"


def show_validation(
    found: dataset.Validation, as_json: bool, masks: "ShownMasks | None" = None
) -> None:
    """Findings with measure, limit and remedy, and the masks that were written."""
    if as_json:
        shown = {} if masks is None else {"masks": masks.as_json()}
        print_json({**found.model_dump(mode="json"), "refused": found.refused, **shown})
        return
    if found.findings:
        stdout_console().print(dataset.findings_table(found))
    print(f"{len(found.accepted)} photos accepted, {len(found.findings)} findings")
    if found.unanswered:
        print(f"{found.unanswered} questions to the vision-language model were not answered")
    if masks is not None:
        print_table("Masks", ("photo", "share", "from"), masks.rows)
        print(f"{masks.file}: each photo beside its mask")
        print(masks.note)


def show_config(config: Config, as_json: bool) -> None:
    """All keys with defaults filled in."""
    document = config.model_dump(mode="json")
    if as_json:
        print_json(document)
    else:
        print(yaml.safe_dump(document, sort_keys=False), end="")


def show_plan(config: Config, as_json: bool) -> None:
    """Plan of a run, with a check of its photos. Raises `DatasetRefused`, `ModelError`."""
    checked = [
        dataset.validate(subject.folder, config.dataset, config.model.resolution, subject)
        for subject in _with_local_photos(config).subjects
    ]
    plan = _plan(config, checked)
    if as_json:
        print_json({"config": config.model_dump(mode="json"), "plan": plan})
    else:
        show_config(config, as_json=False)
        print_table("Plan", ("stage", "what"), [[name, what] for name, what in plan.items()])
    for hard in (item for found in checked for item in found.findings if item.level == "hard"):
        raise DatasetRefused(f"{hard.file}: {hard.check}: {hard.measure}; {hard.remedy}")


def show_training_plan(planned: TrainingPlan, as_json: bool) -> None:
    """The resolved config and the memory plan."""
    document, memory = planned.config.model_dump(mode="json"), planned.memory
    if as_json:
        print_json({"config": document, "memory": memory.as_json()})
        return
    show_config(planned.config, as_json=False)
    print_table("Memory plan", ("stage", "what", "bytes"), [list(row) for row in memory.as_table()])


def show_trained(trained: TrainingResult, as_json: bool) -> None:
    """Result of a training; JSON on one line."""
    document = trained.model_dump(mode="json")
    if as_json:
        print(json.dumps(document))
        return
    digests = document.pop("digests")
    rows = {**document, **{f"{name} digest": value for name, value in digests.items()}}
    shown = [[name.replace("_", " "), str(value)] for name, value in rows.items()]
    print_table("Trained", ("what", "value"), shown)


def show_families(as_json: bool) -> None:
    """Families with their pipeline, objective, training methods and test coverage."""
    found = {name: families.load_family(name) for name in plugins.names(families.__name__)}
    document = {
        name: {
            "pipeline": family.pipeline_class,
            "objective": "flow matching" if family.flow else "diffusion",
            "trainable_text_encoders": list(family.tokenizers),
            "methods": {method: {"tested": TESTED} for method in families.methods(family)},
        }
        for name, family in found.items()
    }
    if as_json:
        print_json(document)
        return
    rows = [
        [name, str(facts["pipeline"]), str(facts["objective"]), " ".join(facts["methods"])]
        for name, facts in document.items()
    ]
    print_table("", ("family", "pipeline", "objective", "methods"), rows)
    print(f"Tests of every family and method: {TESTED}")


def show_recipes(as_json: bool) -> None:
    """Recipe -> family, method, resolution, learning rate and steps."""
    found = {}
    for name in recipe_names():
        recipe = yaml.safe_load(recipe_file(name).read_text(encoding="utf-8"))
        method = recipe["train"]["method"]
        section = method if method == "textual_inversion" else "train"
        found[name] = {
            "family": recipe["model"]["family"],
            "method": method,
            "resolution": recipe["model"]["resolution"],
            "learning_rate": recipe[section]["learning_rate"],
            "steps": recipe["train"]["steps"],
        }
    if as_json:
        print_json(found)
        return
    columns = ("recipe", "method", "pixels", "learning rate", "steps")
    rows = [
        [
            name,
            facts["method"],
            *(f"{facts[key]:g}" for key in ("resolution", "learning_rate", "steps")),
        ]
        for name, facts in found.items()
    ]
    print_table("", columns, rows)


def show_bench(bench: dreambench.Bench, path: Path, as_json: bool) -> None:
    """Table with the paper's values, deviations from its protocol, and the path of the results."""
    if as_json:
        print_json(bench.model_dump(mode="json"))
        return
    columns, *rows = dreambench.table(bench)
    print_table(f"DreamBench by {bench.recipe}", columns, rows)
    for sentence in bench.deviations:
        print(f"Deviation from the paper: {sentence}")
    print(bench.caution)
    print(f"Results  {path}")


def _plan(config: Config, checked: list[dataset.Validation]) -> dict[str, str]:
    from dreambooth_core.diffusion.base_model import base_digest

    train, rules, batch = config.train, config.evaluation, config.sample
    family = families.load_family(config.model.family)
    text = "".join(f", {name}" for name in families.trained_encoders(family, config))
    tracking = config.tracking.uri or "MLflow in paths.work"
    accepted = sum(len(found.accepted) for found in checked)
    findings = sum(len(found.findings) for found in checked)
    images = len(rules.kinds) * rules.seeds + rules.class_images
    base = base_digest(config.model)[:12]
    priors = {
        "images": f"{config.prior.num_class_images} class images of base {base}",
        "prediction": f"no class images: target is the prediction of base {base}",
        None: "off",
    }
    return {
        "validate": f"{accepted} photos accepted, {findings} findings",
        "priors": priors[config.prior_target],
        "train": f"{train.method}, {family.denoiser}{text}, {train.steps} steps of {train.batch_size}, "
        f"a checkpoint every {config.checkpoints.every_n_steps}",
        "evaluate": f"{images} images each of the tuned model and the base",
        "register": f"{config.name}@candidate in {tracking}",
        "sample": f"{len(batch.prompts)} prompts x {batch.seeds} seeds",
        "report": f"{config.paths.work}/reports and {config.storage.uri}",
    }


def _with_local_photos(config: Config) -> Config:
    """The config with its dataset versions fetched into local folders, if it has any."""
    if not uses_versions(config):
        return config
    with local_services(config):
        return with_folders(config, open_store(config.storage))
