"""Photos from a video: sharp, well exposed and different frames, optionally checked by a model.

A first pass over the video measures the frames and keeps numbers only; a second one decodes the
candidates again and writes them into a temporary folder. The result does not depend on the machine's
load; equal videos give equal frames.
"""

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from pydantic import BaseModel

from dreambooth_core.config import Dataset
from dreambooth_core.data.findings import printable
from dreambooth_core.data.images import encode_png, square
from dreambooth_core.data.video import VideoLimits, VideoRefused, decoded_frames
from dreambooth_core.errors import ConfigError, StageFailed, Unanswered, one_line
from dreambooth_core.storage.records import Record
from dreambooth_core.vision import shifts, similarity
from dreambooth_core.vision.language.messages import Picture, question

if TYPE_CHECKING:
    from PIL.Image import Image

    from dreambooth_core.vision.language.model import VisionLanguageModel

TABLE = "frames.json"
"""The table's file in the folder of frames."""
MEASURED_SIDE = 512
"""Longer side in pixels at which frames are measured."""
MAX_MEASURED = 2000
"""Frames measured at most, evenly spaced; of longer videos every second, fourth, ... frame."""
THUMBNAIL = 16
"""Side in pixels of the thumbnails that are compared."""
SHARP = 0.5
"""Least sharpness, as a share of the sharpest frame of the same scene."""
SHARP_IN_VIDEO = 0.2
"""Least sharpness, as a share of the 95th percentile of the video's well exposed frames."""
SAME_SCENE = 0.1
"""Largest difference of thumbnails within a scene, in the unit of `DIFFERENT`."""
CONTRAST = 0.3
"""Least contrast, as a share of the video's median: fades, and frames without an image."""
CLIPPED = 0.3
"""Largest share of black and white pixels above the video's median share."""
DIFFERENT = 0.03
"""Least difference of two chosen frames' thumbnails: root mean square of colours in [0, 1]."""
TIME_WEIGHT = 0.1
"""Difference that a video's whole duration counts as, in the same unit."""
RESERVE = 3
"""Candidates per wanted frame, of which later ones replace rejected ones."""

FIRST = """\
This image is a frame of a video about one {noun}. First give a `reason` in one sentence. `same_subject`: \
whether a {noun} is in the image. `unobstructed`: whether it is visible as a whole, or nearly so, and \
neither cut off by the image's edge nor hidden by a hand, a person, text or another object."""
LATER = """\
Both images are frames of a video about one {noun}, which the first image shows. First give a `reason` in \
one sentence. `same_subject`: whether the second image shows this very {noun}, not another one. \
`unobstructed`: whether it is visible there as a whole, or nearly so, and neither cut off by the image's \
edge nor hidden by a hand, a person, text or another object."""


Checked = Literal["no", "yes", "unanswered"]
"""Whether a model has checked a frame."""


class FrameVerdict(BaseModel):
    """A model's answer about one frame."""

    reason: str
    same_subject: bool
    unobstructed: bool


class FrameOfVideo(Record):
    """A chosen or a rejected frame."""

    file: str
    """Name in the folder; empty for a rejected frame."""
    seconds: float
    """Time after the video's first frame."""
    sharpness: float
    """As a share of the 95th percentile of the video's well exposed frames."""
    contrast: float
    """Grey levels between the 5th and the 95th percentile, 0 to 255."""
    reason: str
    checked: Checked


class VideoFrames(Record):
    """The table of a folder of frames."""

    clip: str
    """File name of the video."""
    folder: str
    frames: tuple[FrameOfVideo, ...]
    """Chosen frames, in order of time."""
    rejected: tuple[FrameOfVideo, ...]
    """Candidates that were near duplicates or that the model rejected, in order of time."""
    decoded: int
    measured: int
    badly_exposed: int
    """Measured frames below the limit of contrast or above that of clipped pixels."""
    blurred: int
    """Well exposed frames below a limit of sharpness."""
    unanswered: int
    """Chosen frames that the model was asked about in vain; they are chosen by optical quality alone."""
    hdr: str | None = None
    """`PQ` or `HLG` for HDR video, whose colours are not tone-mapped."""


@dataclass(frozen=True)
class Measures:
    """Optical measures of a frame."""

    index: int
    seconds: float
    detail: float
    """Fine detail relative to coarse detail; independent of the scene's texture and contrast."""
    contrast: float
    clipped: float
    """Share of pixels that are nearly black or white."""
    thumbnail: NDArray[np.float32]
    """(THUMBNAIL, THUMBNAIL, 3) in [0, 1]."""


class Survey(NamedTuple):
    """Measures of a video's frames."""

    decoded: int
    frames: list[Measures]
    hdr: str | None


class Ranking(NamedTuple):
    """Measured frames in order of preference."""

    candidates: list[int]
    """Indices into the measured frames."""
    sharpness: NDArray[np.float64]
    """Of each measured frame, as a share of the 95th percentile of the well exposed ones."""
    badly_exposed: int
    blurred: int


class Judged(NamedTuple):
    """What was decided about a candidate."""

    accepted: bool
    reason: str
    checked: Checked


def frames_from_video(
    clip: Path,
    out: Path,
    count: int = 8,
    *,
    noun: str = "subject",
    rules: Dataset | None = None,
    model: "VisionLanguageModel | None" = None,
    limits: VideoLimits | None = None,
) -> VideoFrames:
    """Write up to `count` frames of a video into a new folder, with the table `frames.json`.

    The folder appears complete or not at all. With a model, a frame is chosen only if the model finds
    the same `noun` in it, unobstructed; a frame without an answer is chosen and counted. Raises
    `VideoRefused` as `decoded_frames` does and without a usable frame, `ConfigError` for a folder that
    is not empty, `StageFailed` if the model answered nothing, and the errors of
    `VisionLanguageModel.ask` except `Unanswered`.
    """
    limits, rules = limits or VideoLimits(), rules or Dataset()
    _check_folder(out)
    survey = measured(clip, limits)
    ranking = ranked(survey.frames, count * RESERVE)
    with _new_folder(out) as temporary:
        files = _written(clip, limits, temporary, [survey.frames[n] for n in ranking.candidates])
        judged = _judged(files, count, noun, rules, model)
        if not any(one.accepted for one in judged.values()):
            raise VideoRefused(_no_frame(clip, judged))
        for index, path in files.items():
            if index not in judged or not judged[index].accepted:
                path.unlink()
        table = _table(clip, out, survey, ranking, files, judged)
        (temporary / TABLE).write_text(table.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return table


def measured(clip: Path, limits: VideoLimits) -> Survey:
    """Measures of up to `MAX_MEASURED` evenly spaced frames; raises as `decoded_frames` does."""
    found: list[Measures] = []
    step, decoded, hdr = 1, 0, None
    for frame in decoded_frames(clip, limits):
        decoded, hdr = frame.index + 1, hdr or frame.hdr
        if frame.index % step:
            continue
        found.append(measures(frame.index, frame.seconds, frame.image(MEASURED_SIDE)))
        if len(found) > MAX_MEASURED:
            found, step = found[::2], 2 * step
    return Survey(decoded, found, hdr)


def measures(index: int, seconds: float, image: "Image") -> Measures:
    """Optical measures of an RGB image."""
    grey = image.convert("L")
    side = min(grey.size)
    centre = square(grey, side)
    fine = similarity.sharpness(centre, side)
    coarse = similarity.sharpness(centre, max(side // 4, 8))
    levels = np.asarray(grey)
    low, high = np.percentile(levels, (5, 95))
    thumbnail = image.resize((THUMBNAIL, THUMBNAIL), Pillow.Resampling.BOX)
    return Measures(
        index=index,
        seconds=seconds,
        detail=fine / coarse if coarse > 1 else 0.0,
        contrast=float(high - low),
        clipped=float(((levels <= 4) | (levels >= 251)).mean()),
        thumbnail=np.asarray(thumbnail, dtype=np.float32) / np.float32(255),
    )


def ranked(frames: Sequence[Measures], count: int) -> Ranking:
    """Up to `count` frames, each the one that differs most from those before it (farthest-point order).

    The first is the sharpest. The difference to the nearest earlier frame, in colours and time, is
    weighted by sharpness; the order ends at a difference of colours below `DIFFERENT`.
    """
    pixels = np.stack([frame.thumbnail.ravel() for frame in frames])
    times = np.array([frame.seconds for frame in frames]) / max(frames[-1].seconds, 1e-9)
    exposed = _exposed(frames)
    detail = np.where(exposed, [frame.detail for frame in frames], 0.0)
    best = float(np.percentile(detail[exposed], 95)) if exposed.any() else 0.0
    sharpness = detail / max(best, 1e-9)
    sharp = (sharpness >= SHARP_IN_VIDEO) & (sharpness >= SHARP * _of_scene(sharpness, pixels))
    usable, colours = exposed & sharp, np.full(len(frames), np.inf)
    score, distance = sharpness, np.full(len(frames), np.inf)
    order: list[int] = []
    while len(order) < count and usable.any():
        order.append(int(np.where(usable, score, -1).argmax()))
        difference = np.sqrt(((pixels - pixels[order[-1]]) ** 2).mean(axis=1))
        apart = np.hypot(difference, TIME_WEIGHT * (times - times[order[-1]]))
        colours, distance = np.minimum(colours, difference), np.minimum(distance, apart)
        score = np.minimum(sharpness, 1) * distance
        usable &= colours >= DIFFERENT
    return Ranking(order, sharpness, int((~exposed).sum()), int((exposed & ~sharp).sum()))


def _exposed(frames: Sequence[Measures]) -> NDArray[np.bool_]:
    """Frames within the limits of contrast and of clipped pixels, relative to the video's medians."""
    contrast = np.array([frame.contrast for frame in frames])
    clipped = np.array([frame.clipped for frame in frames])
    least = max(CONTRAST * float(np.median(contrast)), 1.0)
    return np.asarray((contrast >= least) & (clipped <= np.median(clipped) + CLIPPED))


def _of_scene(sharpness: NDArray[np.float64], pixels: NDArray[np.float32]) -> NDArray[np.float64]:
    """The greatest sharpness among the frames with a similar thumbnail, for each frame."""
    squares = (pixels**2).mean(axis=1)
    products = pixels @ pixels.T / pixels.shape[1]
    similar = squares[:, None] + squares - 2 * products <= SAME_SCENE**2
    return np.asarray(np.where(similar, sharpness, 0).max(axis=1))


def _check_folder(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty folder: name a new one with --out")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes `out` at the end, and is removed on errors."""
    temporary = out.parent / f"~{secrets.token_hex(8)}"
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _written(
    clip: Path, limits: VideoLimits, folder: Path, candidates: Sequence[Measures]
) -> dict[int, Path]:
    """The candidates as PNG files, by index and in the candidates' order; decodes the video again."""
    wanted = {frame.index for frame in candidates}
    paths = {}
    for frame in decoded_frames(clip, limits):
        if frame.index in wanted:
            minutes, rest = divmod(round(frame.seconds * 1000), 60_000)
            name = f"{minutes:02d}m{rest // 1000:02d}s{rest % 1000:03d}-{frame.index:05d}.png"
            paths[frame.index] = folder / name
            paths[frame.index].write_bytes(encode_png(frame.image()))
            if len(paths) == len(wanted):
                break
    if len(paths) < len(wanted):
        raise VideoRefused(f"{printable(clip.name)} changed while it was being read: run again")
    return {frame.index: paths[frame.index] for frame in candidates}


def _judged(
    files: dict[int, Path],
    count: int,
    noun: str,
    rules: Dataset,
    model: "VisionLanguageModel | None",
) -> dict[int, Judged]:
    """Candidates in their order, until `count` are accepted; raises `StageFailed` without any answer."""
    judged: dict[int, Judged] = {}
    views, reference = _Views(rules), None
    for index, path in files.items():
        if sum(one.accepted for one in judged.values()) == count:
            break
        image = Pillow.open(path).convert("RGB")
        if views.repeated(image):
            judged[index] = Judged(False, "near duplicate of a chosen frame", "no")
            continue
        judged[index] = one = _verdict(model, noun, image, reference)
        if one.accepted:
            views.add(image)
        if one.accepted and one.checked == "yes":
            reference = reference or image
    failed = [one.reason for one in judged.values() if one.checked == "unanswered"]
    if failed and all(one.checked != "yes" for one in judged.values()):
        raise StageFailed(
            f"{failed[0]} about any of {len(failed)} frames: check vision in the config, or leave it out"
        )
    return judged


def _verdict(
    model: "VisionLanguageModel | None", noun: str, image: "Image", reference: "Image | None"
) -> Judged:
    """`reference` is the first frame that the model accepted."""
    if model is None:
        return Judged(True, "sharp, and unlike the other frames", "no")
    shown = [image] if reference is None else [reference, image]
    pictures = [Picture(one, f"Image {number}:") for number, one in enumerate(shown, 1)]
    text = (FIRST if reference is None else LATER).format(noun=noun)
    try:
        verdict = model.ask([question(text, pictures)], FrameVerdict).value
    except Unanswered as error:
        return Judged(
            True, f"the vision-language model gave no answer ({_text(error)})", "unanswered"
        )
    if verdict.same_subject and verdict.unobstructed:
        return Judged(True, _text(verdict.reason), "yes")
    fault = "obstructed" if verdict.same_subject else f"not the same {noun}"
    return Judged(False, f"{fault}: {_text(verdict.reason)}", "yes")


def _text(reason: object) -> str:
    return one_line(Exception(str(reason)), 200)


def _no_frame(clip: Path, judged: dict[int, Judged]) -> str:
    """Message of a video without an accepted frame."""
    reasons = [one.reason for one in judged.values()] or ["all are dark or without detail"]
    return (
        f"{printable(clip.name)} has no usable frame, of {len(judged)} candidates the first is: "
        f"{reasons[0]}; film the subject alone and unobstructed"
    )


class _Views:
    """Chosen frames, for comparison as `dreambooth validate` compares photos."""

    def __init__(self, rules: Dataset) -> None:
        self._limit = rules.near_duplicate
        self._seen: list[tuple[similarity.Fingerprint, shifts.Views]] = []

    def add(self, image: "Image") -> None:
        self._seen.append((similarity.fingerprint(image), shifts.views(image)))

    def repeated(self, image: "Image") -> bool:
        """Whether it is a near duplicate of an added one, as a whole or shifted."""
        one, views = similarity.fingerprint(image), shifts.views(image)
        return any(
            similarity.alike(other, one).score > self._limit
            or shifts.shifted(seen, views, 1).score > shifts.COPY
            for other, seen in self._seen
        )


def _table(
    clip: Path,
    out: Path,
    survey: Survey,
    ranking: Ranking,
    files: dict[int, Path],
    judged: dict[int, Judged],
) -> VideoFrames:
    """The rows of accepted and of rejected candidates."""
    place = {frame.index: n for n, frame in enumerate(survey.frames)}

    def row(index: int) -> FrameOfVideo:
        frame, one = survey.frames[place[index]], judged[index]
        return FrameOfVideo(
            file=files[index].name if one.accepted else "",
            seconds=round(frame.seconds, 3),
            sharpness=round(float(ranking.sharpness[place[index]]), 3),
            contrast=round(frame.contrast, 1),
            reason=one.reason,
            checked=one.checked,
        )

    rows = [(judged[index].accepted, row(index)) for index in sorted(judged)]
    return VideoFrames(
        clip=printable(clip.name),
        folder=printable(str(out)),
        frames=tuple(one for accepted, one in rows if accepted),
        rejected=tuple(one for accepted, one in rows if not accepted),
        decoded=survey.decoded,
        measured=len(survey.frames),
        badly_exposed=ranking.badly_exposed,
        blurred=ranking.blurred,
        unanswered=sum(one.checked == "unanswered" for one in judged.values()),
        hdr=survey.hdr,
    )
