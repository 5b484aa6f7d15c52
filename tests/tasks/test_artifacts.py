"""The gallery artifact of a run."""

import base64
import io

from PIL import Image

from dreambooth_core.data.contact_sheets import SIDE
from dreambooth_core.storage.records import ImageSet, SampleSet
from tasks.artifacts import gallery
from tests.registered_by_hand import noise_images


def test_the_gallery_has_one_row_of_photos_and_one_per_prompt(file_store):
    photos, samples = noise_images(file_store, ImageSet, 0), noise_images(file_store, SampleSet, 1)
    captions = [image.model_copy(update={"prompt": image.name}) for image in photos.images]
    captioned = photos.model_copy(update={"images": tuple(captions)})
    head, _, body = gallery(file_store, captioned, samples).partition(",")
    assert head == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(body))) as sheet:
        assert sheet.size == (2 * SIDE, 2 * SIDE)
