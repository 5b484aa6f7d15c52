"""Tasks of judgement and retrieval: calibration of the judge, search of images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dreambooth_core.config import Config
from tasks.stage import progress_artifact, stage

if TYPE_CHECKING:
    from dreambooth_core.batch_sampling.search import Runs, SearchHit, SearchQuery
    from dreambooth_core.evaluation.calibration import Calibration
    from dreambooth_core.evaluation.known_answers import Statement


@stage("calibrate")
def calibrate_judge(
    config: Config, labels: "Sequence[Statement]" = (), photos: int = 8
) -> "Calibration":
    """Measure and store the judge's agreement with known answers."""
    from dreambooth_core.evaluation import calibration

    with progress_artifact("calibrate") as progress:
        return calibration.calibrate_on_photos(config, labels, photos, progress)


@stage("search", gpu=True)
def search_images(
    config: Config | None, runs: "Runs", query: "SearchQuery"
) -> "tuple[SearchHit, ...]":
    """The generated images that match a text or an image file best."""
    from dreambooth_core.batch_sampling import search

    return search.search(config, runs, query)[0]
