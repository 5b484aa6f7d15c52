"""Tests of class images: shared by runs, in the photos' sizes, for every class noun."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from dreambooth_core.config import Config
from dreambooth_core.storage.blobs import get_blob, image_set
from dreambooth_core.storage.records import Blob, Image, ImageSet
from dreambooth_core.storage.stores import Store, open_store
from dreambooth_core.training.class_images import class_images, ensure_class_images


def _config(base: Path, work: Path, **changes: Any) -> Config:
    document = {
        "name": "test",
        "subject": {"images": work, "class_noun": "dog"},
        "model": {"base": str(base), "resolution": 32},
        "sampler": {"inference_steps": 2, "batch_size": 2},
        "prior": {"target": "images", "num_class_images": 2},
        "storage": {"uri": f"file://{work / 'store'}", "endpoint": None},
        "paths": {"work": work},
        **changes,
    }
    return Config.model_validate(document)


def _photos(store: Store, *sizes: tuple[int, int], subjects: tuple[int, ...] = ()) -> ImageSet:
    """Photos without content."""
    subjects = subjects or (0,) * len(sizes)
    members = [
        Image(
            name=f"{index}.png",
            blob=Blob(sha256=f"{index:064d}", size=1),
            size=size,
            subject=subject,
        )
        for index, (size, subject) in enumerate(zip(sizes, subjects, strict=True))
    ]
    return image_set(store, "datasets/test", members)


def test_class_images_are_extended_and_shared(tiny_base: Path, tmp_path: Path) -> None:
    config = _config(tiny_base, tmp_path)
    store = open_store(config.storage)
    photos = _photos(store, (64, 64))
    two, reused = ensure_class_images(config, store, photos)
    assert two is not None
    assert (two.count, reused) == (2, False)
    more = _config(tiny_base, tmp_path, prior={"target": "images", "num_class_images": 4}, seed=9)
    four, reused = ensure_class_images(more, store, photos)
    assert four is not None
    assert (four.images[:2], reused) == (two.images, False)
    assert ensure_class_images(config, store, photos) == (two, True)
    assert {image.prompt for image in four.images} == {"a photo of a dog"}


def test_of_two_processes_one_generates_them(tiny_base: Path, tmp_path: Path) -> None:
    storage = {"uri": f"file://{tmp_path / 'store'}", "endpoint": None}
    configs = [_config(tiny_base, tmp_path / name, storage=storage) for name in ("first", "second")]
    photos = _photos(open_store(configs[0].storage), (64, 64))
    start, found = threading.Barrier(2), []

    def generate(config: Config) -> None:
        start.wait(30)
        found.append(ensure_class_images(config, open_store(config.storage), photos))

    threads = [threading.Thread(target=generate, args=(config,)) for config in configs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    (first, first_reused), (second, second_reused) = found
    assert first == second
    assert (first_reused, second_reused) == (False, True)


def test_there_are_none_unless_configured(tiny_base: Path, tmp_path: Path) -> None:
    off = _config(tiny_base, tmp_path, prior={"enabled": False})
    predicted = _config(
        tiny_base, tmp_path, prior={"target": "prediction"}, train={"method": "lora"}
    )
    store = open_store(off.storage)
    for config in (off, predicted):
        assert class_images(config, _photos(store, (64, 64))) == ()
        assert ensure_class_images(config, store, _photos(store, (64, 64))) == (None, True)


def test_they_have_the_sizes_of_the_photos(tiny_base: Path, tmp_path: Path) -> None:
    buckets = {"buckets": True, "bucket_step": 8}
    config = _config(
        tiny_base, tmp_path, dataset=buckets, prior={"target": "images", "num_class_images": 3}
    )
    store = open_store(config.storage)
    made, _ = ensure_class_images(config, store, _photos(store, (64, 64), (100, 50), (101, 50)))
    assert made is not None
    sizes = [image.size for image in made.images]
    assert sizes.count((32, 32)) == 1
    assert len(set(sizes)) == 2
    assert all(height >= width for height, width in sizes if height and width)


def test_each_class_noun_has_its_own(tiny_base: Path, tmp_path: Path) -> None:
    others = [
        {"images": tmp_path, "class_noun": "cat", "identifier": "zwx"},
        {"images": tmp_path, "class_noun": "dog", "identifier": "ohwx"},
    ]
    config = _config(tiny_base, tmp_path, more_subjects=others)
    store = open_store(config.storage)
    photos = _photos(store, (64, 64), (64, 64), (64, 64), subjects=(0, 1, 2))
    prompts = [item.prompt for item in class_images(config, photos)]
    assert prompts == ["a photo of a dog"] * 2 + ["a photo of a cat"] * 2


GENERATOR = """
import sys
from pathlib import Path
from dreambooth_core.config import Config
from dreambooth_core.training.class_images import ensure_class_images
from dreambooth_core.storage.records import ImageSet
from dreambooth_core.storage.stores import open_store

config = Config.model_validate_json(Path(sys.argv[1]).read_text())
ensure_class_images(config, open_store(config.storage), ImageSet.model_validate_json(sys.argv[2]))
"""


def test_a_killed_process_resumes_to_the_same_images(tiny_base: Path, tmp_path: Path) -> None:
    options = {
        "prior": {"target": "images", "num_class_images": 12},
        "sampler": {"inference_steps": 4, "batch_size": 1},
    }
    config = _config(tiny_base, tmp_path / "killed", **options)
    store = open_store(config.storage)
    photos = _photos(store, (64, 64))
    (tmp_path / "config.json").write_text(config.model_dump_json())
    command = [
        sys.executable,
        "-c",
        GENERATOR,
        str(tmp_path / "config.json"),
        photos.model_dump_json(),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environment) as generator:
        while not _generated(config, photos, store):
            assert generator.poll() is None
            time.sleep(0.01)
        generator.kill()
    generated = _generated(config, photos, store)
    assert 0 < len(generated) < 12

    images, reused = ensure_class_images(config, store, photos)
    assert not reused
    assert (
        generated.items() <= _generated(config, photos, store).items()
    )  # none was generated again
    undisturbed = _config(tiny_base, tmp_path / "undisturbed", **options)
    expected, _ = ensure_class_images(undisturbed, open_store(undisturbed.storage), photos)
    assert images is not None
    assert expected is not None
    assert images.digest == expected.digest
    for image in images.images:
        get_blob(store, image.blob)


def _generated(config: Config, photos: ImageSet, store: Store) -> dict[str, float]:
    """Key of each stored class image's record -> time of writing."""
    planned = {image.key for image in class_images(config, photos)}
    return {found.key: found.written for found in store.listed("") if found.key in planned}
