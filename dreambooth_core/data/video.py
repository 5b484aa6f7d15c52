"""Decoding of video files under limits, frame by frame, upright and with square pixels.

Only local container files are read: formats that refer to other files or servers (playlists, image
sequences, scripts) are not accepted. Metadata (positions, dates, names) is not read.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth_core.data.findings import printable
from dreambooth_core.errors import ConfigError, DatasetRefused, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,asf,flv,ogg"
"""FFmpeg's names of accepted containers."""
HDR = {16: "PQ", 18: "HLG"}
"""Transfer functions of HDR video, by their numbers in ITU-T H.273."""
TOLERANCE = (0.2, 0.1)
"""How much shorter than declared a complete video may be: seconds, plus a share of its duration."""

CUT = "cut out the part that shows the subject"
SCALE = "scale it down"
LARGER = "use a larger original"


class VideoRefused(DatasetRefused):
    """A video that cannot be used; nothing was written."""


@dataclass(frozen=True)
class VideoLimits:
    """Limits of one pass over a video."""

    seconds: float = 600.0
    """Duration, declared and decoded."""
    pixels: int = 36_000_000
    """Width times height of a frame: 8K, 7680 x 4320, with room for padding."""
    min_side: int = 32
    """Shorter side of a frame in pixels."""
    frames: int = 40_000
    """Decoded frames: 600 s of 60 per second, with room."""
    working: float = 600.0
    """Wall-clock seconds."""


@dataclass(frozen=True)
class DecodedFrame:
    """A frame and its place in the video."""

    index: int
    """From 0."""
    seconds: float
    """Time after the first frame."""
    size: tuple[int, int]
    """Width and height in square pixels, before rotation."""
    hdr: str | None
    """`PQ` or `HLG` for HDR video."""
    _frame: Any

    def image(self, max_side: int | None = None) -> "Image":
        """The upright frame as RGB, its longer side scaled down to `max_side`; no metadata.

        Rotated by the video's display matrix, in steps of 90 degrees. HDR is not tone-mapped.
        """
        from PIL import Image as Pillow

        width, height = self.size
        scale = min(1.0, max_side / max(self.size)) if max_side else 1.0
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
        how = {"interpolation": "AREA", "threads": 1} if scale < 1 else {"threads": 1}
        pixels = self._frame.reformat(width=width, height=height, format="rgb24", **how)
        turns = round(self._frame.rotation / 90) % 4  # counter-clockwise
        rotations = (
            None,
            Pillow.Transpose.ROTATE_90,
            Pillow.Transpose.ROTATE_180,
            Pillow.Transpose.ROTATE_270,
        )
        image: Image = Pillow.fromarray(pixels.to_ndarray())
        turn = rotations[turns]
        return image if turn is None else image.transpose(turn)


def decoded_frames(path: Path, limits: VideoLimits) -> Iterator[DecodedFrame]:
    """The frames of a video's first stream, in order; one is held at a time.

    Raises `VideoRefused` for a file that is no video, has no frames, is damaged or truncated, and
    above a limit; duration and size are checked before decoding. Raises `ConfigError` without PyAV
    and for a missing file. Errors can occur after frames have been given.
    """
    name, started = printable(path.name), time.monotonic()
    with _opened(path, limits) as container:
        stream = _video_stream(container, name)
        _check_declared(container, stream, limits, name)
        last = None
        for frame in _frames(container, stream, name):
            if frame.index >= limits.frames:
                raise _over(name, "more frames", f"{limits.frames:,} frames", CUT)
            if frame.seconds > limits.seconds:
                raise _too_long(name, f"more than {limits.seconds:.0f}", limits)
            _check_pixels(frame.size, limits, name)
            if time.monotonic() - started > limits.working:
                done = f"only {frame.seconds:.0f} s decoded"
                raise _over(name, done, f"{limits.working:.0f} s of decoding", f"{CUT}, or {SCALE}")
            yield frame
            last = frame
        _check_complete(container, stream, last, name)


@contextmanager
def _opened(path: Path, limits: VideoLimits) -> Iterator[Any]:
    """The container, with FFmpeg's own limit on pixels; its errors while open are `VideoRefused`."""
    try:
        import av
    except ImportError:
        raise ConfigError(
            "videos need PyAV, which is not installed: pip install 'dreambooth-factory[video]'"
        ) from None
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise ConfigError(f"the video {path} {what}: give a video file")
    options = {
        "format_whitelist": FORMATS,
        "protocol_whitelist": "none",
        "max_pixels": str(limits.pixels),
    }
    with path.open("rb") as file:
        try:
            container = av.open(file, options=options)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise VideoRefused(
                f"{printable(path.name)} is not a complete video in a known format "
                f"({_reason(error)}): copy it again, or convert it to MP4"
            ) from error
        with container:
            yield container


def _video_stream(container: Any, name: str) -> Any:
    """The first stream of moving pictures; cover art of audio files is none."""
    from av.stream import Disposition

    streams = [
        stream
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic
    ]
    if not streams or streams[0].codec_context is None:
        raise VideoRefused(f"{name} has no video stream that can be decoded: give a video")
    return streams[0]


def _check_declared(container: Any, stream: Any, limits: VideoLimits, name: str) -> None:
    seconds = _declared_seconds(container, stream)
    if seconds is not None and seconds > limits.seconds:
        raise _too_long(name, f"{seconds:.0f}", limits)
    context = stream.codec_context
    _check_pixels((context.width, context.height), limits, name)
    context.options = {"max_pixels": str(limits.pixels)}


def _declared_seconds(container: Any, stream: Any) -> float | None:
    """Duration by the file's header; None if unknown."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / 1e6


def _frames(container: Any, stream: Any, name: str) -> Iterator[DecodedFrame]:
    """Raises `VideoRefused` at the first packet that is damaged or cannot be decoded."""
    import av

    index, first, seconds = 0, None, 0.0
    rate = float(stream.average_rate or 25)
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise _damaged(name, seconds, "a damaged packet")
            for frame in packet.decode():
                if frame.is_corrupt:  # concealed errors, such as before the first key frame
                    continue
                at = index / rate if frame.time is None else frame.time
                first = at if first is None else first
                seconds = max(seconds, at - first)
                hdr = HDR.get(int(frame.color_trc))
                yield DecodedFrame(index, seconds, _shown_size(stream, frame), hdr, frame)
                index += 1
    except (av.FFmpegError, OSError) as error:
        raise _damaged(name, seconds, _reason(error)) from error


def _shown_size(stream: Any, frame: Any) -> tuple[int, int]:
    """Width and height in square pixels, by the pixels' aspect ratio; never fewer than stored."""
    ratio = float(stream.sample_aspect_ratio or 1)
    if ratio >= 1:
        return round(frame.width * ratio), frame.height
    return frame.width, round(frame.height / ratio)


def _check_pixels(size: tuple[int, int], limits: VideoLimits, name: str) -> None:
    width, height = size
    if width * height > limits.pixels:
        limit = f"{limits.pixels / 1e6:.0f} megapixels per frame"
        raise _over(name, f"{width} x {height} pixels", limit, SCALE)
    if min(size) < limits.min_side:
        raise _over(name, f"{width} x {height} pixels", f"{limits.min_side} pixels a side", LARGER)


def _check_complete(container: Any, stream: Any, last: DecodedFrame | None, name: str) -> None:
    """Raises `VideoRefused` without a frame, and if decoded frames end long before the declared end."""
    if last is None:
        raise VideoRefused(f"{name} has no frame that can be decoded: copy it again")
    declared, (least, share) = _declared_seconds(container, stream), TOLERANCE
    if declared is not None and last.seconds + _length(last) < (1 - share) * declared - least:
        raise _damaged(name, last.seconds, f"{declared:.1f} s are declared")


def _length(frame: DecodedFrame) -> float:
    """Seconds that a frame is shown, 0 if unknown."""
    shown = frame._frame
    return float(shown.duration * shown.time_base) if shown.duration and shown.time_base else 0.0


def _reason(error: Exception) -> str:
    """FFmpeg's message without its number and file name."""
    return one_line(Exception(getattr(error, "strerror", None) or str(error)), 120)


def _too_long(name: str, seconds: str, limits: VideoLimits) -> VideoRefused:
    return _over(name, f"{seconds} s", f"{limits.seconds:.0f} s", CUT)


def _over(name: str, measure: str, limit: str, remedy: str) -> VideoRefused:
    return VideoRefused(f"{name} has {measure}, the limit is {limit}: {remedy}")


def _damaged(name: str, seconds: float, reason: str) -> VideoRefused:
    return VideoRefused(
        f"{name} is damaged or truncated after {seconds:.1f} s ({reason}): copy it again from its source"
    )
