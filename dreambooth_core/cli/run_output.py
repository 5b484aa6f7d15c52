"""What the command line prints on stdout: tables for people, JSON for machines."""

import json
from pathlib import Path

import yaml

from dreambooth_core import plugins
from dreambooth_core.cli.bench import dreambench
from dreambooth_core.cli.output import page, print_json, print_table
from dreambooth_core.config import Config, recipe_file, recipe_names
from dreambooth_core.data import dataset
from dreambooth_core.data.references import uses_versions, with_folders
from dreambooth_core.diffusion import families
from dreambooth_core.errors import DatasetRefused
from dreambooth_core.reports.summary import Summary
from dreambooth_core.servers.local import local_services
from dreambooth_core.storage.stores import open_store
from dreambooth_core.training.standalone import TrainingPlan, TrainingResult

TESTED = "trained, exported and put in again with tiny random weights"
"""What tests/dreambooth_core/training/test_methods.py does for every family and method."""


def show_summary(summary: Summary) -> None:
    """Stages, metrics with their intervals beside the base's, the gate's reasons, and the report's place."""
    stages = [[name, s.status, f"{s.seconds:.1f} s"] for name, s in summary.stages.items()]
    print_table(f"Run {summary.run_id}", ("stage", "status", "time"), stages)
    base = {name: f"{value:.3f}" for name, value in summary.base_metrics.items()}
    rows = [
        [name.replace("_", " "), f"{value:.3f}", _ends(summary, name), base.get(name, "")]
        for name, value in summary.metrics.items()
    ]
    print_table("", ("metric", "tuned", "95 % interval", "base"), rows)
    if summary.model:
        aliases = "".join(f" @{alias}" for alias in summary.model.aliases)
        print(f"Model   {summary.model.name}, version {summary.model.version}{aliases}")
    for warning in summary.warnings:
        print(f"Doubt   {warning}")
    if summary.gate:
        print(f"Gate    {summary.gate.outcome}: {summary.gate.sentence}")
        for reason in summary.gate.reasons:
            print(f"        {reason.outcome}, {reason.rule}: {reason.sentence}")
    if all(stage.status in ("reused", "skipped") for stage in summary.stages.values()):
        print("Reused  every stage: nothing has changed since")
    print(f"Report  {summary.artifacts.get('report', '').removeprefix('file://')}")


def _ends(summary: Summary, metric: str) -> str:
    """Empty where a single prompt leaves none."""
    found = summary.estimates.get(metric)
    if found is None or found.low is None or found.high is None:
        return ""
    return f"{found.low:.3f} to {found.high:.3f}"


def show_validation(found: dataset.Validation, as_json: bool) -> None:
    """Findings with measure, limit and remedy."""
    if as_json:
        print_json({**found.model_dump(mode="json"), "refused": found.refused})
        return
    if found.findings:
        page().print(dataset.findings_table(found))
    print(f"{len(found.accepted)} photos accepted, {len(found.findings)} findings")


def show_config(config: Config, as_json: bool) -> None:
    """All keys, defaults filled in."""
    document = config.model_dump(mode="json")
    if as_json:
        print_json(document)
    else:
        print(yaml.safe_dump(document, sort_keys=False), end="")


def show_plan(config: Config, as_json: bool) -> None:
    """What a run would do; the photos are checked for it. Raises `DatasetRefused`, `ModelError`."""
    checked = [
        dataset.validate(subject.folder, config.dataset, config.model.resolution, subject)
        for subject in at_hand(config).subjects
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
    """The config as it would be trained, and what the device would hold."""
    document, memory = planned.config.model_dump(mode="json"), planned.memory
    if as_json:
        print_json({"config": document, "memory": memory.as_json()})
        return
    show_config(planned.config, as_json=False)
    print_table("Memory plan", ("what", "bytes"), [list(row) for row in memory.as_table()])


def show_trained(trained: TrainingResult, as_json: bool) -> None:
    """How a training went; JSON is one line."""
    document = trained.model_dump(mode="json")
    if as_json:
        print(json.dumps(document))
        return
    digests = document.pop("digests")
    rows = {**document, **{f"{name} digest": value for name, value in digests.items()}}
    shown = [[name.replace("_", " "), str(value)] for name, value in rows.items()]
    print_table("Trained", ("what", "value"), shown)


def show_families(as_json: bool) -> None:
    """Family -> what it reads -> by which methods it trains, and on what each was tested."""
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
    print(f"Tested, every method of every family: {TESTED}")


def show_recipes(as_json: bool) -> None:
    """Recipe -> family, method, resolution, learning rate and steps."""
    found = {}
    for name in recipe_names():
        recipe = yaml.safe_load(recipe_file(name).read_text(encoding="utf-8"))
        inverts = recipe["train"]["method"] == "textual_inversion"
        rate = recipe["textual_inversion" if inverts else "train"]["learning_rate"]
        found[name] = {
            "family": recipe["model"]["family"],
            "method": recipe["train"]["method"],
            "resolution": recipe["model"]["resolution"],
            "learning_rate": rate,
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
    """Ours beside the paper's, what is not as in the paper, and where the table lies."""
    if as_json:
        print_json(bench.model_dump(mode="json"))
        return
    columns, *rows = dreambench.table(bench)
    print_table(f"DreamBench by {bench.recipe}", columns, rows)
    for sentence in bench.deviations:
        print(f"Not as in the paper: {sentence}")
    print(bench.caution)
    print(f"Results  {path}")


def _plan(config: Config, checked: list[dataset.Validation]) -> dict[str, str]:
    from dreambooth_core.diffusion.base_model import base_digest

    train, rules, batch = config.train, config.evaluation, config.sample
    family = families.load_family(config.model.family)
    text = "".join(f", {name}" for name in families.trained_encoders(family, config))
    tracking = config.tracking.uri or "MLflow below paths.work"
    accepted = sum(len(found.accepted) for found in checked)
    findings = sum(len(found.findings) for found in checked)
    drawn = len(rules.kinds) * rules.seeds + rules.class_images
    base = base_digest(config.model)[:12]
    priors = {
        "images": f"{config.prior.num_class_images} class images of base {base}",
        "prediction": f"no class images: the prior is what base {base} answers",
        None: "off",
    }
    return {
        "validate": f"{accepted} photos accepted, {findings} findings",
        "priors": priors[config.prior_target],
        "train": f"{train.method}, {family.denoiser}{text}, {train.steps} steps of {train.batch_size}, "
        f"a checkpoint every {config.checkpoints.every_n_steps}",
        "evaluate": f"{drawn} images each of the tuned model and of the base",
        "register": f"{config.name}@candidate in {tracking}",
        "sample": f"{len(batch.prompts)} prompts x {batch.seeds} seeds",
        "report": f"{config.paths.work}/reports, and in {config.storage.uri}",
    }


def at_hand(config: Config) -> Config:
    """The same for who has no store open; nothing is opened for a config of folders."""
    if not uses_versions(config):
        return config
    with local_services(config):
        return with_folders(config, open_store(config.storage))
