"""Tasks of sampling jobs: resolve the models, plan, draw a shard, publish."""

from pathlib import Path

from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from dreambooth_core.batch_sampling import publish, shards
from dreambooth_core.batch_sampling.job import SamplingJob
from dreambooth_core.batch_sampling.shards import JobPlan
from dreambooth_core.config import Config
from dreambooth_core.registry import resolve
from dreambooth_core.reports.markdown import job_markdown
from dreambooth_core.storage.records import ModelReference, PublishedJob, ShardResult
from dreambooth_core.storage.stores import open_store
from tasks.stage import progress_artifact, stage


@stage("find models")
def find_models(job: SamplingJob, config: Config | None, work: Path) -> dict[str, ModelReference]:
    """The models that the job names, at their current versions; raises `ConfigError`."""
    return resolve.find_models(job.models, config, work)


@stage("plan job")
def plan_job(job: SamplingJob, models: dict[str, ModelReference]) -> JobPlan:
    """Every image of the job; raises `ConfigError` for settings that a model does not support."""
    store = open_store(next(iter(models.values())).config.storage)
    return shards.plan_job(job, models, store)


@stage("draw", gpu=True)
def draw_shard(plan: JobPlan, shard: str) -> ShardResult:
    """Draw the missing images of one shard, `K/N`."""
    part = shards.shard_of(shard)
    get_run_logger().info(publish.announcement(plan, part))
    with progress_artifact("sample") as progress:
        return shards.draw(open_store(plan.storage), plan, part, progress)


@stage("publish")
def publish_job(plan: JobPlan) -> PublishedJob | None:
    """Gallery, contact sheet and manifests in the store; None while images are missing."""
    return publish.publish(plan, open_store(plan.storage))


def publish_job_result(shard: ShardResult, published: PublishedJob | None) -> None:
    """Markdown artifact `job`: images drawn and, once published, the files."""
    create_markdown_artifact(job_markdown(shard, published), key="job")
