"""Tasks of the data: dataset versions, photos, frames of videos, class images."""

from pathlib import Path

from dreambooth_core.config import Config
from dreambooth_core.data.ingest import IngestedPhotos
from dreambooth_core.data.video_frames import VideoFrames
from dreambooth_core.storage.records import ImageSet
from dreambooth_core.storage.stores import open_store
from tasks.stage import progress_artifact, stage


@stage("pin datasets")
def pin_datasets(config: Config) -> Config:
    """Replace `@latest` by the current dataset version, for the records of the run and its model."""
    from dreambooth_core.data.references import pinned, uses_versions

    return pinned(config, open_store(config.storage)) if uses_versions(config) else config


@stage("validate")
def collect_instance_images(config: Config) -> tuple[IngestedPhotos, bool]:
    """Check config and photos, and store the photos; raises `ConfigError` and `DatasetRefused`."""
    from dreambooth_core.data.ingest import checked_photos
    from dreambooth_core.diffusion import families

    families.check(families.load_family(config.model.family), config)
    return checked_photos(config, open_store(config.storage))


@stage("caption")
def caption_instance_images(config: Config, photos: IngestedPhotos) -> tuple[IngestedPhotos, bool]:
    """Caption photos without a caption by the model of `vision`, for `dataset.auto_captions`."""
    from dreambooth_core.data.ingest import captioned_photos

    return captioned_photos(config, open_store(config.storage), photos)


@stage("frames of a video")
def choose_video_frames(config: Config, clip: Path, out: Path, count: int = 8) -> VideoFrames:
    """Write frames of a video into a new folder, checked by the config's model if it has one.

    Raises `VideoRefused`, and `ConfigError` for a folder that is not empty.
    """
    from dreambooth_core.data.video_frames import frames_from_video
    from dreambooth_core.storage.answer_cache import StoredAnswers
    from dreambooth_core.vision.language.model import VisionLanguageModel

    noun, rules = config.subject.class_noun, config.dataset
    if config.vision.backend is None:
        return frames_from_video(clip, out, count, noun=noun, rules=rules)
    cache = StoredAnswers(open_store(config.storage))
    with VisionLanguageModel(config.vision, cache) as model:
        return frames_from_video(clip, out, count, noun=noun, rules=rules, model=model)


@stage("priors", gpu=True)
def ensure_class_images(config: Config, instance: ImageSet) -> tuple[ImageSet | None, bool]:
    """Generate the missing class images; None if the config needs none."""
    from dreambooth_core.training import class_images

    with progress_artifact("priors") as progress:
        return class_images.ensure_class_images(
            config, open_store(config.storage), instance, progress
        )
