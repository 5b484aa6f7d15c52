"""Photos in, class images beside them."""

from dreambooth_core.config import Config
from dreambooth_core.data.ingest import IngestedPhotos
from dreambooth_core.storage.records import ImageSet
from dreambooth_core.storage.stores import open_store
from tasks.stage import progress_shown, stage


@stage("pin datasets")
def pin_datasets(config: Config) -> Config:
    """Write down which dataset version `@latest` is, so that the run and its model say so."""
    from dreambooth_core.data.references import pinned, refers

    return pinned(config, open_store(config.storage)) if refers(config) else config


@stage("validate")
def collect_instance_images(config: Config) -> tuple[IngestedPhotos, bool]:
    """Check config and photos and store them; raises `ConfigError` and `DatasetRefused`."""
    from dreambooth_core.data.ingest import ingest
    from dreambooth_core.diffusion import families

    families.check(families.load_family(config.model.family), config)
    return ingest(config, open_store(config.storage))


@stage("priors", gpu=True)
def ensure_class_images(config: Config, instance: ImageSet) -> tuple[ImageSet | None, bool]:
    """Make the class images that are missing; None where there are to be none."""
    from dreambooth_core.training import class_images

    with progress_shown("priors") as progress:
        return class_images.ensure_class_images(
            config, open_store(config.storage), instance, progress
        )
