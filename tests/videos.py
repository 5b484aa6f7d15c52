"""Video files made by PyAV: clips of small-world renders, and damaged or mislabelled files."""

import random
import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageFilter

from examples.small_world.render import render
from examples.small_world.world import random_identity, random_scene

SIDE = 128
IDENTITY_MATRIX = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
QUARTER_TURN = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
"""Display matrices of MP4: none, and 90 degrees clockwise as phones write it for portraits."""


class Film(NamedTuple):
    """Frames of a clip with what is true of each."""

    images: list[Image.Image]
    blurred: list[bool]
    scenes: list[str]


def film(
    scenes: Sequence[str] = ("grass", "night", "beach", "pink"),
    per_scene: int = 15,
    blurred_share: float = 0.4,
    seed: str = "film",
) -> Film:
    """A dog that moves slowly in each scene; an exact share of each scene's frames is blurred."""
    rng = random.Random(seed)
    identity = random_identity(rng, "dog")
    made = Film([], [], [])
    for name in scenes:
        scene = random_scene(rng, name, accessory_share=0)
        hazy = set(rng.sample(range(per_scene), round(blurred_share * per_scene)))
        for number in range(per_scene):
            moved = scene._replace(
                x=scene.x + 0.01 * number, rotation=scene.rotation + 0.03 * number
            )
            image = render(identity, moved, SIDE)
            if number in hazy:
                image = image.filter(ImageFilter.GaussianBlur(rng.choice((1.0, 2.0, 4.0))))
            made.images.append(image)
            made.blurred.append(number in hazy)
            made.scenes.append(name)
    return made


def write_video(
    path: Path,
    images: Iterable[Image.Image],
    rate: Fraction | int = 10,
    codec: str = "libx264",
    metadata: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
    pixel_shape: Fraction | None = None,
    x264: str = "",
) -> Path:
    """Encode the images in high quality; the container follows the file's extension.

    `options` are the container's; `x264` further parameters of the encoder; `pixel_shape` the
    width of a pixel divided by its height.
    """
    import av

    quality = {
        "libx264": {"crf": "12", "preset": "ultrafast", "x264-params": x264},
        "mpeg4": {"qscale": "3", "flags": "+qscale"},
        "libvpx": {"b": "2000000", "cpu-used": "8"},
    }.get(codec, {})
    pictures = iter(images)
    first = next(pictures)
    with av.open(str(path), "w", options=options or {}) as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream(codec, rate=rate, options=quality)
        stream.width, stream.height = first.size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.thread_count = 1
        if pixel_shape is not None:
            stream.codec_context.sample_aspect_ratio = pixel_shape
        for image in (first, *pictures):
            for packet in stream.encode(av.VideoFrame.from_image(image)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def write_empty(path: Path) -> Path:
    """A header with a video stream, and no frame."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()
    return path


def write_audio(path: Path, cover: Image.Image | None = None) -> Path:
    """A second of silence, optionally with cover art."""
    import av
    import numpy as np
    from av.stream import Disposition

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        if cover is not None:
            art = container.add_stream("mjpeg", rate=1)
            art.width, art.height, art.pix_fmt = *cover.size, "yuvj420p"
            art.disposition = Disposition.attached_pic
            for packet in (*art.encode(av.VideoFrame.from_image(cover)), *art.encode()):
                container.mux(packet)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        sound.sample_rate = 8000
        for packet in (*stream.encode(sound), *stream.encode()):
            container.mux(packet)
    return path


def patched(path: Path, old: bytes, new: bytes, after: bytes = b"") -> Path:
    """Replace the first `old` behind the first `after`."""
    data = bytearray(path.read_bytes())
    place = data.index(old, data.index(after))
    data[place : place + len(old)] = new
    path.write_bytes(data)
    return path
