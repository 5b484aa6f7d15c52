"""Pixels, and their distributions as the autoencoder sees them."""

import numpy as np
import torch
from PIL import Image

from dreambooth_core.families import load_family
from dreambooth_core.latents import LatentDistribution, encode, pixels


def _picture(seed: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_pixels_are_the_middle_square() -> None:
    wide = Image.new("RGB", (64, 32), (255, 0, 0))
    wide.paste((0, 0, 255), (16, 0, 48, 32))
    found = pixels(wide, 32)
    assert found.shape == (3, 32, 32)
    assert found[2].min() == 1
    assert found[0].max() == -1


def test_pixels_keep_the_values_at_their_own_size() -> None:
    picture = _picture(0, (32, 32))
    back = ((pixels(picture, 32) + 1) * 127.5).round().permute(1, 2, 0).to(torch.uint8)
    assert np.array_equal(back.numpy(), np.asarray(picture))


def test_draw_has_the_distribution() -> None:
    many = LatentDistribution(torch.tensor([[1.0], [5.0]]), torch.tensor([[0.0], [4.0]])).scaled(3)
    noise = torch.randn(20000, 1, generator=torch.Generator().manual_seed(0))
    drawn = many.draw(torch.ones(20000, dtype=torch.int64), noise)
    assert abs(drawn.mean().item() - 15) < 0.6
    assert abs(drawn.std().item() - 3 * np.exp(2)) < 0.5


def test_encode_agrees_with_the_autoencoder_and_ignores_neighbours(tiny_base) -> None:
    family = load_family("stable_diffusion")
    parts = family.load(tiny_base, {})
    alone = encode(family, parts, [_picture(1)], 32)
    found = encode(family, parts, [_picture(0), _picture(1)], 32)
    assert torch.equal(found.mean[1], alone.mean[0])
    vae = parts["vae"]
    wanted = vae.encode(pixels(_picture(1), 32)[None]).latent_dist
    torch.testing.assert_close(found.mean[1], wanted.mean[0] * vae.config.scaling_factor)
    spread = found.log_variance[1].mul(0.5).exp()
    torch.testing.assert_close(spread, wanted.std[0] * vae.config.scaling_factor)


def test_mirror_images_follow(tiny_base) -> None:
    family = load_family("stable_diffusion")
    parts = family.load(tiny_base, {})
    pictures = [_picture(0, (32, 32)), _picture(1, (32, 32))]
    found = encode(family, parts, pictures, 32, mirrored=True)
    mirrored = [picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for picture in pictures]
    wanted = encode(family, parts, mirrored, 32)
    assert found.mean.shape[0] == 4
    torch.testing.assert_close(found.mean[2:], wanted.mean)
