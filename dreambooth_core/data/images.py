"""Image decoding under limits, lossless encoding without metadata, square crops, tensors.

A decoded photo is upright RGB in sRGB, without EXIF, GPS positions, profiles and further frames.
"""

import hashlib
import io
import struct
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image as pil
from PIL import ImageCms, ImageOps, UnidentifiedImageError
from PIL.Image import Image

from dreambooth_core.errors import DatasetRefused, one_line

if TYPE_CHECKING:
    import torch

EXTENSIONS: dict[str, tuple[str, ...]] = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"),
    "MPO": ("jpg", "jpeg", "jpe", "jfif", "mpo"),
    "PNG": ("png", "apng"),
    "WEBP": ("webp",),
    "HEIF": ("heic", "heif", "hif"),
    "AVIF": ("avif",),
    "TIFF": ("tif", "tiff"),
    "BMP": ("bmp", "dib"),
    "GIF": ("gif",),
    "JPEG2000": ("jp2", "j2k", "jpf", "jpx"),
}
"""Accepted formats, by Pillow's names, with their extensions."""

SINGLE = ("MPO", "HEIF")
"""Containers whose first frame is the photo; further frames are depth or gain maps or bursts."""
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*")


class ImageRefused(DatasetRefused):
    """An unusable file: failed check, found value, limit, remedy."""

    def __init__(self, check: str, measure: str, limit: str, remedy: str) -> None:
        super().__init__(f"{measure}, the limit is: {limit}; {remedy}")
        self.check, self.measure, self.limit, self.remedy = check, measure, limit, remedy


class Photo(NamedTuple):
    """A decoded photo."""

    image: Image
    """RGB, sRGB, upright, full size, no metadata."""
    format: str
    """Pillow's name of the file's format."""
    alpha: Image | None
    """Opacity as grey levels, None for an opaque photo; `image` is composed on white."""

    @property
    def transparent(self) -> bool:
        return self.alpha is not None


def looks_like_image(head: bytes) -> bool:
    """Whether a file's first 16 bytes are those of a format in `EXTENSIONS`."""
    if head[4:8] == b"ftyp":
        return is_heif(head) or head[8:12] in (b"avif", b"avis")
    return (
        head.startswith(_SIGNATURES)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or head[4:8] == b"jP  "
        or (head[:2] == b"BM" and head[6:10] == bytes(4))
    )


def is_heif(head: bytes) -> bool:
    """Whether a file's first 16 bytes are those of a phone's HEIC or HEIF photo."""
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS


def decode(data: bytes, max_pixels: int, min_side: int = 1) -> Photo:
    """Decode a photo completely, after checking its declared size.

    Raises `ImageRefused`: not an image, no decoder, too many pixels, too small, animated, corrupt.
    """
    with _opened(data) as image:
        _check_size(image, max_pixels, min_side)
        if image.format not in SINGLE and getattr(image, "is_animated", False):
            raise ImageRefused(
                "animated",
                f"a {image.format} with several frames",
                "one frame",
                "export one frame as PNG or JPEG",
            )
        try:
            _verify(data, str(image.format))
            image.load()
            pixels, alpha = _to_srgb(_upright(image))
        except ImageRefused:
            raise
        except Exception as error:  # decoders raise any exception for damaged bytes
            raise _corrupt(one_line(error, 160)) from error
        return Photo(pixels, str(image.format), alpha)


def encode_png(image: Image) -> bytes:
    """PNG of grey or RGB pixels without metadata; equal pixels give equal bytes."""
    mode = "L" if image.mode == "L" else "RGB"
    bare = pil.frombytes(mode, image.size, image.convert(mode).tobytes())
    buffer = io.BytesIO()
    bare.save(buffer, "PNG", compress_level=1)  # half the time of level 6 for a tenth more bytes
    return buffer.getvalue()


def pixel_digest(image: Image) -> str:
    """SHA-256 over an RGB image's size and pixels, as 64 hex digits."""
    digest = hashlib.sha256(struct.pack(">II", *image.size))
    digest.update(image.tobytes())
    return digest.hexdigest()


def square(image: Image, side: int) -> Image:
    """The central square as wide as the shorter side, resized to `side` x `side` (Lanczos)."""
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    # resize's own `box` would sample pixels outside the square
    centre = image.crop((left, top, left + edge, top + edge))
    return centre if edge == side else centre.resize((side, side), pil.Resampling.LANCZOS)


def to_pixels(image: Image, side: int) -> "torch.Tensor":
    """The central square as float32 (3, side, side) in [-1, 1]."""
    import torch

    array = np.asarray(square(image.convert("RGB"), side), dtype=np.float32)
    return torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1).contiguous()


def heif_decoder() -> bool:
    """Register the optional pillow-heif with Pillow; False when it is not installed."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _opened(data: bytes) -> Image:
    """An opened image, with only its header read."""
    heif = is_heif(data[:16])
    if heif and not heif_decoder():
        raise ImageRefused(
            "decoder",
            "a HEIC photo without a decoder",
            "an installed decoder",
            "pip install 'dreambooth-factory[heic]', or export the photo as JPEG",
        )
    known = ["HEIF"] if heif else [name for name in EXTENSIONS if name != "HEIF"]
    pil.init()  # formats that this Pillow was built without must not be passed
    try:
        return pil.open(io.BytesIO(data), formats=[name for name in known if name in pil.OPEN])
    except UnidentifiedImageError:
        if looks_like_image(data[:16]):
            raise _corrupt("its header cannot be read") from None
        raise ImageRefused(
            "not an image",
            f"its {len(data):,} bytes are in no image format" if data else "an empty file",
            "an image format such as JPEG, PNG, WebP or HEIC",
            "remove it or export the photo again",
        ) from None
    except (pil.DecompressionBombError, pil.DecompressionBombWarning):
        raise _too_large(
            "more pixels than the decoder accepts", pil.MAX_IMAGE_PIXELS or 0
        ) from None
    except Exception as error:
        raise _corrupt(one_line(error, 160)) from error


def _check_size(image: Image, max_pixels: int, min_side: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(f"declares {width:,} x {height:,} pixels", max_pixels)
    if min(width, height) < min_side:
        raise ImageRefused(
            "too small",
            f"{width} x {height} pixels",
            f"shorter side of at least {min_side} pixels",
            "use a larger original, or lower model.resolution",
        )


def _too_large(measure: str, limit: int) -> ImageRefused:
    return ImageRefused(
        "too large",
        measure,
        f"at most {limit:,} pixels",
        "scale it down, or raise dataset.max_pixels for a trusted file",
    )


def _corrupt(reason: str) -> ImageRefused:
    return ImageRefused(
        "corrupt",
        f"cannot be decoded completely ({reason})",
        "a complete file",
        "copy it again from the camera or remove it",
    )


def _verify(data: bytes, name: str) -> None:
    """Check a PNG's checksums, which decoding alone skips."""
    if name == "PNG":
        with pil.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.verify()


def _upright(image: Image) -> Image:
    """The image rotated by its orientation tag; unchanged with a damaged tag."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _to_srgb(image: Image) -> tuple[Image, Image | None]:
    """RGB in sRGB on white, and the opacity; None for an opaque image."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):
        image = _from_sixteen_bits(image)
    elif image.mode == "F":
        raise ImageRefused(
            "pixel type", "floating-point pixels", "8 or 16 bits", "export it as JPEG or PNG"
        )
    alpha = None
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("L", "LA", "La") else "RGBA")
        alpha = image.getchannel("A")
        image = image.convert("L" if image.mode == "LA" else "RGB")
    elif image.mode in ("P", "1"):
        image = image.convert("RGB")
    colours = _through_profile(image, profile)
    if alpha is None or alpha.getextrema() == (255, 255):
        return colours, None
    white = pil.new("RGB", colours.size, "white")
    white.paste(colours, mask=alpha)
    return white, alpha


def _from_sixteen_bits(image: Image) -> Image:
    """Grey levels 0..65535 as 0..255; Pillow's own conversion would clip them at 255."""
    levels = np.asarray(image).astype(np.int64)
    if levels.min() < 0 or levels.max() > 65535:
        raise ImageRefused(
            "pixel type", "32-bit pixels", "8 or 16 bits", "export it as JPEG or PNG"
        )
    return pil.fromarray(((levels + 128) // 257).astype(np.uint8))


def _through_profile(image: Image, profile: bytes | None) -> Image:
    """Colours as sRGB; a damaged profile or one of another colour space is ignored."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if not ImageCms.getProfileDescription(source).startswith("sRGB"):
                target = ImageCms.createProfile("sRGB")
                turned = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
                return turned if turned is not None else image.convert("RGB")
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass
    return image.convert("RGB")
