"""Decoding: limits, orientation, colours, formats; encoding: lossless, without metadata, deterministic."""

import io
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from dreambooth_core.data import images
from dreambooth_core.data.images import ImageRefused, decode

MANY = 10_000_000


def scene(width=96, height=64, seed=0):
    """A smooth random image, which JPEG preserves well."""
    coarse = np.random.default_rng(seed).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def saved(image, name, **options):
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def gps_exif(orientation=1):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x0110] = "Telltale 12"
    exif[0x8825] = {1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 18.0)}
    return exif


def refusal(data, **limits):
    with pytest.raises(ImageRefused) as caught:
        decode(data, limits.get("max_pixels", MANY), limits.get("min_side", 1))
    return caught.value


@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF", "BMP"])
def test_lossless_formats_come_back_pixel_by_pixel(name):
    options = {"lossless": True} if name == "WEBP" else {}
    photo = decode(saved(scene(), name, **options), MANY)
    assert (photo.format, photo.transparent) == (name, False)
    assert photo.image.tobytes() == scene().tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_tag_is_applied(orientation):
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    rotated = scene().transpose(turns[orientation]) if orientation > 1 else scene()
    photo = decode(saved(rotated, "PNG", exif=gps_exif(orientation)), MANY)
    assert photo.image.tobytes() == scene().tobytes()


def test_a_damaged_orientation_tag_is_ignored():
    data = saved(scene(), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode(data, MANY).image.size == (96, 64)


def test_a_phone_s_second_frame_is_not_an_animation():
    depth = Image.new("RGB", (48, 32))
    data = saved(scene(), "MPO", save_all=True, append_images=[depth], exif=gps_exif())
    photo = decode(data, MANY)
    assert (photo.format, photo.image.size) == ("MPO", (96, 64))


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG", "TIFF"])
def test_several_frames_are_refused(name):
    frames = [scene(seed=seed) for seed in (1, 2)]
    data = saved(scene(), name, save_all=True, append_images=frames)
    assert refusal(data).check == "animated"


def test_heic_is_decoded_with_the_optional_decoder():
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(scene()).save(buffer, quality=95, exif=gps_exif().tobytes())
    photo = decode(buffer.getvalue(), MANY)
    difference = np.abs(np.asarray(photo.image, int) - np.asarray(scene(), int)).mean()
    assert photo.format == "HEIF"
    assert difference < 8


def test_heic_without_a_decoder_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as for a missing module
    found = refusal(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))
    assert found.check == "decoder"
    assert "dreambooth-factory[heic]" in found.remedy


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_truncated_files_are_refused(name, share):
    data = saved(scene(200, 200), name)
    assert refusal(data[: int(len(data) * share)]).check == "corrupt"


def test_a_flipped_bit_in_a_png_fails_its_checksum():
    data = bytearray(saved(scene(), "PNG"))
    data[data.index(b"IDAT") + 40] ^= 1
    assert refusal(bytes(data)).check == "corrupt"


@pytest.mark.parametrize("data", [b"", b"hello, I am a text", b"BMW is no bitmap", b"%PDF-1.7\n"])
def test_other_files_are_not_images(data):
    assert refusal(data).check == "not an image"
    assert not images.looks_like_image(data[:16])


def test_a_decompression_bomb_is_refused_by_its_header():
    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    for side in (5_000, 12_000, 60_000):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000)))
        assert refusal(bomb + chunk(b"IEND", b"")).check == "too large"


def test_small_images_are_refused_by_their_shorter_side():
    data = saved(scene(96, 64), "PNG")
    assert refusal(data, min_side=65).check == "too small"
    assert decode(data, MANY, min_side=64).image.size == (96, 64)


def test_transparency_becomes_white():
    glass = Image.new("RGBA", (4, 2), (255, 0, 0, 255))
    glass.putpixel((0, 0), (0, 0, 0, 0))
    photo = decode(saved(glass, "PNG"), MANY)
    assert photo.transparent
    assert photo.image.getpixel((0, 0)) == (255, 255, 255)
    assert photo.image.getpixel((1, 0)) == (255, 0, 0)


def test_an_opaque_alpha_channel_is_ignored():
    photo = decode(saved(scene().convert("RGBA"), "PNG"), MANY)
    assert not photo.transparent
    assert photo.image.tobytes() == scene().tobytes()


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    photo = decode(saved(Image.fromarray(ramp), "PNG"), MANY)
    assert np.array_equal(np.asarray(photo.image)[..., 1].ravel(), np.arange(256))


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode):
    name = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    photo = decode(saved(scene().convert(mode), name), MANY)
    assert photo.image.mode == "RGB"
    grey = mode in ("L", "1", "LA")
    expected = np.asarray(scene().convert(mode).convert("L" if grey else "RGB").convert("RGB"), int)
    assert np.abs(np.asarray(photo.image, int) - expected).mean() < 4


def test_colours_are_converted_by_their_profile():
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = Image.new("LAB", (8, 8), (200, 128, 128))
    photo = decode(saved(pixels, "TIFF", icc_profile=lab), MANY)
    red, green, blue = photo.image.getpixel((4, 4))
    assert abs(red - 194) < 8
    assert max(abs(red - green), abs(green - blue)) < 6  # a = b = 0 is grey
    assert (
        decode(saved(scene(), "PNG", icc_profile=srgb), MANY).image.tobytes() == scene().tobytes()
    )


def test_a_damaged_profile_is_ignored():
    data = saved(scene(), "PNG", icc_profile=b"not a profile at all")
    assert decode(data, MANY).image.tobytes() == scene().tobytes()


def test_the_copy_contains_pixels_only():
    photo = decode(saved(scene(), "JPEG", exif=gps_exif(), comment=b"at home"), MANY)
    photo.image.info["exif"] = gps_exif().tobytes()
    data = images.encode_png(photo.image)
    kinds, offset = set(), 8
    while offset < len(data):
        (length,) = struct.unpack(">I", data[offset : offset + 4])
        kinds.add(data[offset + 4 : offset + 8])
        offset += length + 12
    assert kinds == {b"IHDR", b"IDAT", b"IEND"}
    assert Image.open(io.BytesIO(data)).tobytes() == photo.image.tobytes()
    assert images.encode_png(photo.image) == data


def test_the_digest_depends_on_the_shape():
    flat = Image.new("RGB", (4, 2))
    assert images.pixel_digest(flat) != images.pixel_digest(flat.resize((2, 4)))
    assert images.pixel_digest(flat) == images.pixel_digest(flat.copy())


def test_square_takes_the_centre():
    wide = Image.new("RGB", (30, 10), "red")
    wide.paste("blue", (10, 0, 20, 10))
    assert images.square(wide, 10).getcolors() == [(100, (0, 0, 255))]
    assert images.square(wide, 5).getcolors() == [(25, (0, 0, 255))]


def test_pixels_span_minus_one_to_one():
    both = Image.new("RGB", (2, 2), "black")
    both.putpixel((1, 0), (255, 0, 128))
    pixels = images.to_pixels(both, 2)
    assert (tuple(pixels.shape), str(pixels.dtype)) == ((3, 2, 2), "torch.float32")
    assert pixels[:, 0, 1].tolist() == pytest.approx([1, -1, 128 / 127.5 - 1], abs=1e-6)
    assert pixels[0, 0, 0] == -1
