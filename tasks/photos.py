"""Photos in, class images beside them."""

from dreambooth_core.config import Config
from dreambooth_core.photos.intake import Intake
from dreambooth_core.records import ImageSet
from dreambooth_core.storage import open_store
from tasks.stages import progress_shown, stage


@stage("pin datasets")
def pin_datasets(config: Config) -> Config:
    """Write down which dataset version `@latest` is, so that the run and its model say so."""
    from dreambooth_core.photos.references import pinned, refers

    return pinned(config, open_store(config.storage)) if refers(config) else config


@stage("validate")
def collect_instance_images(config: Config) -> tuple[Intake, bool]:
    """Check the photos and take them in; raises `DatasetRefused`."""
    from dreambooth_core.photos.intake import take_in

    return take_in(config, open_store(config.storage))


@stage("priors", gpu=True)
def ensure_class_images(config: Config, instance: ImageSet) -> tuple[ImageSet | None, bool]:
    """Make the class images that are missing; None where there are to be none."""
    from dreambooth_core import priors

    with progress_shown("priors") as progress:
        return priors.ensure_class_images(config, open_store(config.storage), instance, progress)
