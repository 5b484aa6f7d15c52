"""Boxes by a vision-language model: a scripted chat server with the true boxes of small-world renders."""

import base64
import io
import random

import numpy as np
import pytest
from PIL import Image

from dreambooth_core.config import Config, Detector, Vision
from dreambooth_core.data.auto_masks import UNANSWERED
from dreambooth_core.data.images import encode_png
from dreambooth_core.data.ingest import ingest
from dreambooth_core.errors import ConfigError, StageFailed
from dreambooth_core.metrics.embeddings import ImageEmbedder
from dreambooth_core.storage.answer_cache import StoredAnswers
from dreambooth_core.storage.blobs import get_blob, put_blob
from dreambooth_core.storage.records import Image as StoredImage
from dreambooth_core.vision.crops import crop, detector_digest
from dreambooth_core.vision.detectors import is_remote, load_detector, local_detector
from dreambooth_core.vision.language import spending
from examples.small_world.render import render, subject_mask
from examples.small_world.world import random_identity, random_scene
from tests.chat_server import Reply, serving

KIND = {"kind": "language_model"}
SEGMENTER = "examples/small_world/detector"
BACKGROUNDS = ("grass", "pink", "desert")


@pytest.fixture(autouse=True)
def _new_account():
    spending._account.cache_clear()


@pytest.fixture(scope="module")
def renders():
    """Photos of a dog, and the mask of each by its pixels."""
    identity, photos, truth = random_identity(random.Random("boxes"), "dog"), [], {}
    for background in BACKGROUNDS:
        scene = random_scene(random.Random(background), background, accessory_share=0)
        photos.append(render(identity, scene))
        truth[photos[-1].tobytes()] = subject_mask(identity, scene)
    return photos, truth


def box_of(mask) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def sent(request) -> Image.Image:
    url = request["messages"][0]["content"][0]["image_url"]["url"]
    return Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1]))).convert("RGB")


def marked(*boxes) -> str:
    """Boxes of pixels of a 64 x 64 image in GLM's style."""
    rows = [[round(1000 * number / 64) for number in box] for box in boxes]
    return f"<|begin_of_box|>{rows}<|end_of_box|>"


def locating(truth, failing=()):
    """Serve the true box of a request's image, and prose for images in `failing` (their pixels)."""

    def answer(number, request):
        pixels = sent(request).tobytes()
        if pixels in failing:
            return Reply("It is hard to say.")
        return Reply(marked(box_of(truth[pixels])) if pixels in truth else "[]")

    return serving(answer)


def vision(url, **options) -> Vision:
    return Vision(backend="openai_compatible", url=url, model="glm-4.5v", attempts=1, **options)


def text_of(request) -> str:
    return request["messages"][0]["content"][-1]["text"]


def test_the_box_of_the_noun_is_the_region(renders):
    photos, truth = renders
    with locating(truth) as server:
        detector = load_detector(Detector(**KIND), vision(server.url))
        found = detector.find(photos, "dog")
    for photo, region in zip(photos, found, strict=True):
        assert np.abs(np.subtract(region.box, box_of(truth[photo.tobytes()]))).max() <= 1
        assert region.mask is None
    assert {text_of(request).partition(".")[0] for request in server.requests} == {
        "Locate every dog in the image"
    }
    assert detector.unanswered == 0


def test_the_largest_of_several_boxes_is_the_region():
    def answer(number, request):
        return Reply(marked((0, 0, 8, 8), (10, 10, 60, 40), (50, 50, 60, 64)))

    with serving(answer) as server:
        detector = load_detector(Detector(**KIND), vision(server.url))
        (region,) = detector.find([Image.new("RGB", (64, 64))], "dog")
        (wide,) = detector.find([Image.new("RGB", (640, 64))], "dog")
    assert np.abs(np.subtract(region.box, (10, 10, 60, 40))).max() <= 1
    assert np.abs(np.subtract(wide.box, (100, 10, 600, 40))).max() <= 5


def test_no_box_is_no_region_and_no_failure(renders):
    with locating({}) as server:
        detector = load_detector(Detector(**KIND), vision(server.url))
        assert detector.find(renders[0], "cat") == [None] * 3
    assert detector.unanswered == 0


@pytest.mark.parametrize(
    "reply", ["It is on the left.", "[[10, 10, 5, 20]]", "[[0, 0, 4000, 20]]", "[[1, 2, 3]]"]
)
def test_an_unusable_answer_is_counted_and_gives_no_region(reply, capsys):
    with serving(lambda *_: Reply(reply)) as server:
        detector = load_detector(Detector(**KIND), vision(server.url))
        assert detector.find([Image.new("RGB", (64, 64))] * 2, "dog") == [None, None]
    assert detector.unanswered == 2
    assert "glm-4.5v left 2 of 2 images without a region" in capsys.readouterr().err


def test_a_refused_key_is_an_error(renders):
    with serving(lambda *_: Reply(status=401, body="no")) as server:
        detector = load_detector(Detector(**KIND), vision(server.url))
        with pytest.raises(StageFailed, match="check the options"):
            detector.find(renders[0], "dog")


def test_answers_are_cached_and_failures_are_not(renders, file_store):
    photos, truth = renders
    failing = {photos[1].tobytes()}
    with locating(truth, failing) as server:
        for _ in range(2):
            detector = load_detector(
                Detector(**KIND), vision(server.url), StoredAnswers(file_store)
            )
            assert [region is None for region in detector.find(photos, "dog")] == [0, 1, 0]
    # each failed question is asked twice, with a correction
    assert len(server.requests) == 2 + 2 + 2


def test_a_segmenter_gives_the_mask_inside_the_box(renders):
    photos, truth = renders
    with locating(truth) as server:
        rules = Detector(**KIND, model=SEGMENTER)
        found = load_detector(rules, vision(server.url)).find(photos, "dog")
    for photo, region in zip(photos, found, strict=True):
        true, (left, top, right, bottom) = truth[photo.tobytes()], region.box
        outside = np.ones_like(true)
        outside[top:bottom, left:right] = False
        assert not (region.mask & outside).any()
        assert (region.mask & true).sum() > 0.6 * (region.mask | true).sum()


def test_crops_have_a_margin_around_the_box(renders):
    photos, truth = renders
    with locating(truth) as server:
        (region,) = load_detector(Detector(**KIND), vision(server.url)).find(photos[:1], "dog")
    left, top, right, bottom = region.box
    longer = max(right - left, bottom - top)
    assert crop(photos[0], region).size == (longer + 2 * round(0.12 * longer),) * 2


def test_the_digest_is_of_the_model_and_of_the_segmenter():
    rules, one = Detector(**KIND), vision("http://h/v1")
    digest = detector_digest(rules, one)
    assert digest == detector_digest(rules, vision("http://h/v1", timeout=3))
    others = [
        detector_digest(rules, vision("http://h/v1", max_side=256)),
        detector_digest(rules, vision("http://other/v1")),
        detector_digest(Detector(**KIND, model=SEGMENTER), one),
    ]
    assert len({digest, *others}) == 4


def test_a_model_is_needed_and_training_sends_nothing():
    rules = Detector(**KIND)
    for missing in (None, Vision()):
        with pytest.raises(ConfigError, match=r"set vision\.backend and vision\.model"):
            load_detector(rules, missing)
    assert is_remote(rules)
    assert local_detector(rules) is None
    assert not is_remote(Detector(kind="segmenter", model=SEGMENTER))
    assert local_detector(Detector(kind="segmenter", model=SEGMENTER)) is not None


def config_for(folder, url, store=None, model="glm-4.5v", **detector) -> Config:
    return Config.model_validate(
        {
            "name": "test",
            "subject": {"images": str(folder), "class_noun": "dog"},
            "model": {"base": "examples/small_world/base", "resolution": 64},
            "dataset": {"auto_masks": True},
            "loss": {"masks": True},
            "vision": {"backend": "openai_compatible", "url": url, "model": model, "attempts": 1},
            "evaluation": {"detector": {**KIND, **detector}},
        }
    )


def test_a_config_needs_a_model_that_gives_boxes(tmp_path):
    with pytest.raises(ValueError, match=r"coordinate style is not known for vision\.model m"):
        config_for(tmp_path, "http://h/v1", model="m")
    document = config_for(tmp_path, "http://h/v1").model_dump(mode="json")
    with pytest.raises(ValueError, match=r"language_model needs a model: set vision\.backend"):
        Config.model_validate({**document, "vision": {}})


@pytest.fixture
def photo_folder(renders, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, photo in zip(BACKGROUNDS, renders[0], strict=True):
        photo.save(folder / f"{name}.png")
    return folder


def test_masks_for_the_loss_are_the_boxes(renders, photo_folder, file_store):
    with locating(renders[1]) as server:
        config = config_for(photo_folder, server.url)
        ingested, _ = ingest(config, file_store)
        assert ingest(config, file_store)[1]
        assert len(server.requests) == 3
    for photo in ingested.images.images:
        pixels, mask = (
            Image.open(io.BytesIO(get_blob(file_store, blob))) for blob in (photo.blob, photo.mask)
        )
        left, top, right, bottom = box_of(renders[1][pixels.convert("RGB").tobytes()])
        white = np.asarray(mask) == 255
        assert white[top:bottom, left:right].all()
        assert white.sum() <= (right - left + 2) * (bottom - top + 2)


def test_photos_without_an_answer_get_no_mask_and_are_asked_about_again(
    renders, photo_folder, file_store
):
    photos, truth = renders
    failing = {photos[0].tobytes()}
    with locating(truth, failing) as server:
        config = config_for(photo_folder, server.url)
        ingested, _ = ingest(config, file_store)
        assert sum(photo.mask is None for photo in ingested.images.images) == 1
        (finding,) = [one for one in ingested.validation.findings if "mask" in one.check]
        assert finding.check == UNANSWERED
        assert "did not answer about 1 of 3 photos" in finding.measure
        failing.clear()
        ingested, reused = ingest(config, file_store)
        assert not reused
        assert all(photo.mask for photo in ingested.images.images)
        assert ingest(config, file_store)[1]


def test_an_evaluation_crops_by_the_boxes_and_counts_failures(renders, tiny_config, file_store):
    photos, truth = renders
    stored = [
        StoredImage(name=f"{n}.png", blob=put_blob(file_store, encode_png(photo)))
        for n, photo in enumerate(photos)
    ]
    key, failing = ("identity", "crop"), {photos[2].tobytes()}
    with locating(truth, failing) as server:
        rules = tiny_config.evaluation.model_copy(update={"detector": Detector(**KIND)})
        update = {"evaluation": rules, "vision": vision(server.url)}
        config = tiny_config.model_copy(update=update)
        embedder = ImageEmbedder(config, file_store)
        found = embedder.embed(stored, "dog", [key])
        assert [region is None for region in found.regions] == [False, False, True]
        assert np.isnan(found.get(key)).all(axis=1).tolist() == [False, False, True]
        assert embedder.unanswered == 1
        failing.clear()
        again = ImageEmbedder(config, file_store)
        assert not np.isnan(again.embed(stored, "dog", [key]).get(key)).any()
        assert again.unanswered == 0
    assert len(server.requests) == 2 + 2 + 1
