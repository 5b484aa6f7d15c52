"""Flow `train`: photos to an evaluated, registered model with a report."""

from typing import cast

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from dreambooth_core.config import Config
from dreambooth_core.errors import DatasetRefused
from dreambooth_core.reports.summary import RunRecorder, Summary
from dreambooth_core.servers.local import local_services
from dreambooth_core.tracking import mlflow as tracking
from dreambooth_core.tracking.vision_budget import run_budget
from tasks.artifacts import publish_findings, publish_plan, publish_results, write_report
from tasks.data import (
    caption_instance_images,
    collect_instance_images,
    ensure_class_images,
    pin_datasets,
)
from tasks.events import emit_outcome
from tasks.models import (
    evaluate_samples,
    generate_samples,
    judge_candidate,
    promote_version,
    register_version,
    train_model,
)


@flow(name="train", persist_result=False)
def train_flow(config: Config) -> Summary:
    """Fine-tune on a subject's photos; stored results are reused, interrupted trainings resumed."""
    with local_services(config):
        tracking.reach(config)
        config = pin_datasets(config)
        with RunRecorder(config) as run, run_budget(config):
            try:
                photos = run.stage("validate", collect_instance_images, config)
            except DatasetRefused as refused:
                publish_findings(config, refused.findings)
                raise
            if config.dataset.auto_captions:
                photos = run.stage("caption", caption_instance_images, config, photos)
            publish_plan(config, photos)
            instance = photos.images
            if not config.prior.generate_in_background:
                classes = run.stage("priors", ensure_class_images, config, instance)
            weights = run.stage("train", train_model, config, instance)
            if config.prior.generate_in_background:
                classes = run.stage("priors", ensure_class_images, config, instance)
            scores = run.stage("evaluate", evaluate_samples, config, instance, weights)
            inputs = (instance, classes, weights, scores)
            version = run.stage("register", register_version, config, *inputs)
            verdict = run.stage("gate", judge_candidate, config, instance, weights, scores)
            version = run.stage("promote", promote_version, config, version, verdict)
            run.stage("sample", generate_samples, config, weights)
            run.stage("report", write_report, config, run.results, run.stages)
        publish_results(config, run.summary, run.results)
        if run.stages["promote"].status == "done":
            emit_outcome(version, verdict)
        if verdict.outcome == "promote":
            return run.summary
        rejected: State[Summary] = Completed(
            name="GateRejected", message=verdict.sentence, data=run.summary
        )
        # Prefect gives the caller the state's data
        return cast(Summary, rejected)
