"""Tests of pixels, masks and cached latents."""

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth_core.config import Config
from dreambooth_core.data import images
from dreambooth_core.data.buckets import Crop, crop
from dreambooth_core.diffusion import base_model
from dreambooth_core.diffusion.families import load_family
from dreambooth_core.diffusion.latents import LatentDistribution
from dreambooth_core.errors import StageFailed
from dreambooth_core.storage import records
from dreambooth_core.storage.blobs import put_blob
from dreambooth_core.storage.tensor_cache import TensorCache
from dreambooth_core.training.latents import LatentEncoder, cached_latents, mask_shares, pixels

FAMILY = load_family("stable_diffusion")
SQUARE = (32, 32)


def _image(seed: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """Noise; size is width and height."""
    values = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(values)


def _config(**sections: Any) -> Config:
    subject = {"images": "photos", "class_noun": "robot"}
    return Config.model_validate({"name": "robot", "subject": subject, **sections})


class World:
    """A store with photos, a cache, and an autoencoder that counts loads and forwards."""

    def __init__(self, base: Path, store: Any, folder: Path) -> None:
        self.base, self.store, self.folder = base, store, folder
        self.loads = self.forwards = 0

    def photo(
        self, seed: int, size: tuple[int, int] = (40, 32), mask: Image.Image | None = None
    ) -> records.Image:
        blob = put_blob(self.store, images.encode_png(_image(seed, size)))
        mask_blob = put_blob(self.store, images.encode_png(mask)) if mask else None
        return records.Image(name=f"{seed}.png", blob=blob, size=size[::-1], mask=mask_blob)

    def encoder(self) -> LatentEncoder:
        def load() -> Any:
            self.loads += 1
            parts = FAMILY.load(self.base)

            def encode(pixels: torch.Tensor) -> LatentDistribution:
                self.forwards += 1
                return FAMILY.encode_images(parts, pixels)

            return encode

        return LatentEncoder(base_model.component_digest(self.base, ("vae",)), "float32", load)

    def encoded(self, photos: list[records.Image], size: tuple[int, int] = SQUARE, **config: Any):  # type: ignore[no-untyped-def]
        cache = TensorCache("latents", self.folder, self.store)
        sizes = [size] * len(photos)
        return cached_latents(self.store, photos, sizes, _config(**config), cache, self.encoder())


@pytest.fixture
def world(tiny_base: Path, file_store, tmp_path: Path) -> World:  # type: ignore[no-untyped-def]
    return World(tiny_base, file_store, tmp_path / "caches")


def test_pixels_are_the_crop_only() -> None:
    wide = Image.new("RGB", (64, 32), (255, 0, 0))
    wide.paste((0, 0, 255), (16, 0, 48, 32))
    found = pixels(wide, crop((32, 64), SQUARE, 0, ""))
    assert found.shape == (3, 32, 32)
    assert found[2].min() == 1
    assert found[0].max() == -1


def test_pixels_keep_the_values_at_their_own_size() -> None:
    image = _image(0, (48, 32))
    found = pixels(image, Crop((32, 48), (0, 5), SQUARE))
    back = ((found + 1) * 127.5).round().permute(1, 2, 0).to(torch.uint8)
    assert np.array_equal(back.numpy(), np.asarray(image)[:, 5:37])


def test_cropping_equals_scaling_then_cropping() -> None:
    image = _image(3, (90, 60)).resize((300, 200), Image.Resampling.BICUBIC)
    cut = crop((200, 300), (40, 40), 3, "x")
    scaled = image.resize(cut.resized[::-1], Image.Resampling.LANCZOS)
    whole = np.asarray(scaled, dtype=np.float32)[:, cut.offset[1] : cut.offset[1] + 40]
    found = ((pixels(image, cut) + 1) * 127.5).permute(1, 2, 0).numpy()
    assert np.abs(found - whole).max() <= 1


def test_mirrored_pixels_are_the_flipped_crop() -> None:
    cut = crop((32, 64), SQUARE, 2, "x")
    assert torch.equal(
        pixels(_image(1, (64, 32)), cut, True).flip(-1), pixels(_image(1, (64, 32)), cut)
    )


def test_mask_shares_are_areas_of_the_crop() -> None:
    mask = Image.new("L", (64, 32))
    mask.paste(255, (20, 4, 64, 32))
    cut = Crop((32, 64), (0, 16), SQUARE)
    found = mask_shares(mask, cut, False, (4, 4))
    across, down = torch.tensor([0.5, 1, 1, 1]), torch.tensor([0.5, 1, 1, 1])
    torch.testing.assert_close(found, (down[:, None] * across)[None])
    assert torch.equal(mask_shares(mask, cut, True, (4, 4)), found.flip(-1))


def test_draw_has_the_distribution() -> None:
    one = LatentDistribution(torch.tensor([5.0]), torch.tensor([4.0])).scaled(3)
    drawn = one.draw(torch.randn(20000, 1, generator=torch.Generator().manual_seed(0)))
    assert abs(drawn.mean().item() - 15) < 0.6
    assert abs(drawn.std().item() - 3 * np.exp(2)) < 0.5


def test_latents_match_the_autoencoder_and_do_not_depend_on_other_images(world: World) -> None:
    photos = [world.photo(0), world.photo(1)]
    found = world.encoded(photos).get(1, 0)
    alone = World(world.base, world.store, world.folder / "alone").encoded(photos[1:]).get(0, 0)
    assert torch.equal(found.latents.mean, alone.latents.mean)
    vae = FAMILY.load(world.base)["vae"]
    wanted = vae.encode(pixels(_image(1), crop((32, 40), SQUARE, 0, ""))[None]).latent_dist
    torch.testing.assert_close(found.latents.mean, wanted.mean[0] * vae.config.scaling_factor)
    spread = found.latents.log_variance.mul(0.5).exp()
    torch.testing.assert_close(spread, wanted.std[0] * vae.config.scaling_factor)
    assert found.numbers == (32, 40, 0, 4, 32, 32)


def test_views_are_upright_crops_then_mirrored_ones(world: World) -> None:
    photo = world.photo(0, (64, 32))
    found = world.encoded([photo], train={"flip": True, "crops": 3})
    assert set(found.views) == {(0, view) for view in range(6)}
    vae = FAMILY.load(world.base)["vae"]
    for view in range(6):
        cut = crop((32, 64), SQUARE, view % 3, photo.blob.sha256)
        cropped = pixels(_image(0, (64, 32)), cut, mirrored=view >= 3)
        wanted = vae.encode(cropped[None]).latent_dist.mean[0] * vae.config.scaling_factor
        torch.testing.assert_close(found.get(0, view).latents.mean, wanted)
        left = cut.offset[1] if view < 3 else 64 - 32 - cut.offset[1]
        assert found.get(0, view).numbers == (32, 64, 0, left, 32, 32)


def test_only_new_images_are_encoded_and_a_full_cache_loads_no_model(world: World) -> None:
    photos = [world.photo(seed) for seed in range(5)]
    first = world.encoded(photos)
    assert (first.made, first.found, world.loads, world.forwards) == (5, 0, 1, 5)
    again = world.encoded(photos)
    assert (again.made, again.found, world.loads, world.forwards) == (0, 5, 1, 5)
    photos[2] = world.photo(9)
    changed = world.encoded(photos)
    assert (changed.made, changed.found, world.forwards) == (1, 4, 6)
    assert torch.equal(changed.get(4, 0).latents.mean, first.get(4, 0).latents.mean)
    assert not torch.equal(changed.get(2, 0).latents.mean, first.get(2, 0).latents.mean)


def test_another_size_crop_or_autoencoder_is_another_entry(world: World) -> None:
    photos = [world.photo(0, (64, 32))]
    world.encoded(photos)
    assert world.encoded(photos, size=(32, 48)).made == 1
    assert world.encoded(photos, train={"crops": 2}).made == 1
    assert world.encoded(photos, train={"flip": True}).made == 1
    assert world.encoded([world.photo(1, (63, 32))], size=(32, 32)).made == 1
    # the same position in the same scaled photo, only wider
    assert world.encoded([world.photo(1, (63, 32))], size=(32, 33)).made == 1
    cache, other = TensorCache("latents", world.folder, world.store), world.encoder()
    for changed in (
        LatentEncoder("another", "float32", other.load),
        LatentEncoder(other.digest, "bf16", other.load),
    ):
        assert cached_latents(world.store, photos, [SQUARE], _config(), cache, changed).made == 1


def test_masks_are_read_only_with_loss_masks(world: World) -> None:
    mask = Image.new("L", (40, 32))
    mask.paste(255, (4, 0, 20, 32))  # the left half of the middle square
    photos = [world.photo(0, mask=mask), world.photo(1)]
    assert world.encoded(photos).get(0, 0).mask is None
    found = world.encoded(photos, loss={"masks": True}, train={"flip": True})
    assert found.get(1, 0).mask is None
    height, width = found.get(0, 0).latents.mean.shape[1:]
    left = torch.zeros(1, height, width)
    left[:, :, : width // 2] = 1
    assert torch.equal(found.get(0, 0).mask, left)
    assert torch.equal(found.get(0, 1).mask, left.flip(-1))


def test_an_image_of_another_size_than_recorded_is_refused(world: World) -> None:
    photo = world.photo(0).model_copy(update={"size": (32, 41)})
    with pytest.raises(StageFailed, match=r"0\.png is 32 x 40 pixels where 32 x 41"):
        world.encoded([photo])


def _tensor_bytes() -> int:
    """Bytes of all live tensors."""
    gc.collect()
    storages = {
        found.untyped_storage().data_ptr(): found.untyped_storage().nbytes()
        for found in gc.get_objects()
        if issubclass(type(found), torch.Tensor)
    }
    return sum(storages.values())


def test_the_autoencoder_is_freed_after_encoding(world: World) -> None:
    photos = [world.photo(0)]
    parts = FAMILY.load(world.base)
    reference = weakref.ref(parts["vae"])
    weight = sum(value.nbytes for value in parts["vae"].state_dict().values())
    encoder = LatentEncoder(
        "x", "float32", lambda: lambda batch: FAMILY.encode_images(parts, batch)
    )
    cache = TensorCache("latents", world.folder)
    found = cached_latents(world.store, photos, [SQUARE], _config(), cache, encoder)
    before = _tensor_bytes()
    parts = parts.without("vae")
    assert reference() is None
    assert before - _tensor_bytes() == weight
    assert found.get(0, 0).latents.mean.isfinite().all()
