"""Flow `sample`: images, gallery and manifest of a sampling job."""

from pathlib import Path

from prefect import flow

from dreambooth_core.batch_sampling.job import SamplingJob
from dreambooth_core.config import Config
from dreambooth_core.servers.local import local_services
from dreambooth_core.storage.records import ShardResult
from tasks.batch import draw_shard, find_models, plan_job, publish_job, publish_job_result


@flow(name="sample", persist_result=False)
def sample_flow(
    job: SamplingJob,
    work: Path = Path(".dreambooth"),
    config: Config | None = None,
    shard: str = "1/1",
) -> ShardResult:
    """Draw the missing images of a shard; the last shard publishes the job.

    `config` locates MLflow; without it, MLflow's database is in the folder `work`.
    """
    models = find_models(job, config, work)
    with local_services(next(iter(models.values())).config):
        plan = plan_job(job, models)
        result = draw_shard(plan, shard)
        publish_job_result(result, publish_job(plan))
        return result
