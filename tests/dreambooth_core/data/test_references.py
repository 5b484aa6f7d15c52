"""Configs with dataset versions as photos."""

import pytest
from pydantic import ValidationError

from dreambooth_core.cli.run_output import _with_local_photos
from dreambooth_core.config import Config, Subject
from dreambooth_core.data.ingest import ingest
from dreambooth_core.data.references import pinned, with_folders
from dreambooth_core.data.versions import push
from dreambooth_core.errors import ConfigError, StorageError


@pytest.fixture
def photos(tiny_config):
    return tiny_config.subject.images


def naming(config: Config, reference: str) -> Config:
    subject = config.subject.model_copy(update={"images": reference})
    return Config.model_validate(config.model_copy(update={"subject": subject}).model_dump())


def test_a_folder_and_its_version_are_the_same_photos(tiny_config, photos, file_store):
    from PIL import Image

    Image.new("L", (64, 64), 200).save(photos / "1.mask.png")
    (photos / "0.txt").write_text("{subject} on a table")
    by_folder, _ = ingest(tiny_config, file_store)
    push(file_store, photos, "robot", 32)
    by_name, reused = ingest(naming(tiny_config, "dataset://robot@latest"), file_store)
    assert not reused
    # the digest is part of the training's key: pushed photos are not trained on again
    assert by_name.images.digest == by_folder.images.digest
    assert by_name.images.images == by_folder.images.images
    assert ingest(naming(tiny_config, "dataset://robot@latest"), file_store) == (by_name, True)


def test_latest_is_pinned_to_the_latest_version(tiny_config, photos, file_store):
    config = naming(tiny_config, "dataset://robot@latest")
    first = push(file_store, photos, "robot", 32)
    before = pinned(config, file_store)
    assert before.subject.images == first.reference
    (photos / "0.png").unlink()
    second = push(file_store, photos, "robot", 32)
    assert pinned(config, file_store).subject.images == second.reference
    assert pinned(before, file_store) == before
    assert ingest(before, file_store)[0].images.count == 4
    assert ingest(config, file_store)[0].images.count == 3
    # the stage is cached by the full digest, for any form of the reference
    short = naming(tiny_config, second.reference[:-50])
    assert ingest(short, file_store) == (ingest(config, file_store)[0], True)


def test_a_folder_that_differs_is_replaced(tiny_config, photos, file_store):
    (photos / "0.txt").write_text("{subject} on a table")
    push(file_store, photos, "robot", 32)
    config = naming(tiny_config, "dataset://robot@latest")
    folder = with_folders(config, file_store).subject.folder
    assert folder.is_relative_to(tiny_config.paths.work)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(files) == 5
    (caption,) = folder.glob("*.txt")
    caption.write_text("{subject} on a chair")
    (folder / "stray.png").write_bytes(b"x")
    next(folder.glob("*.png")).write_bytes(b"x")
    assert with_folders(config, file_store).subject.folder == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert not list(folder.parent.glob("~*"))


def test_missing_content_leaves_no_partial_folder(tiny_config, photos, file_store):
    push(file_store, photos, "robot", 32)
    for key in list(file_store.keys("blobs/"))[:1]:
        file_store.delete(key)
    with pytest.raises(StorageError, match="blobs/"):
        with_folders(naming(tiny_config, "dataset://robot@latest"), file_store)
    assert not [path for path in tiny_config.paths.work.rglob("*") if path.is_file()]


def test_a_config_of_folders_opens_no_store(tiny_config):
    nowhere = tiny_config.model_copy(
        update={"storage": tiny_config.storage.model_copy(update={"uri": "s3://missing"})}
    )
    assert _with_local_photos(nowhere) is nowhere


def test_invalid_references_are_refused(tiny_config, file_store):
    for images in ("dataset://robot", "dataset://robot@newest", "dataset://../x@latest"):
        with pytest.raises(ValidationError, match="names no dataset version"):
            Subject.model_validate({"images": images, "class_noun": "robot"})
    with pytest.raises(ConfigError, match="has no dataset robot"):
        ingest(naming(tiny_config, "dataset://robot@latest"), file_store)
    assert Subject.model_validate({"images": "photos", "class_noun": "x"}).dataset is None
