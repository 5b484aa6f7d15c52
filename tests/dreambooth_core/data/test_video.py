"""Decoding of real videos: rotation, pixel shape, limits, and files that are refused."""

import struct
import tracemalloc
from contextlib import suppress
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from dreambooth_core.data.video import VideoLimits, VideoRefused, decoded_frames
from dreambooth_core.data.video_frames import measured
from dreambooth_core.errors import ConfigError
from tests.videos import (
    IDENTITY_MATRIX,
    QUARTER_TURN,
    patched,
    write_audio,
    write_empty,
    write_video,
)

LIMITS = VideoLimits()
TEN_HOURS = Fraction(1, 18_000)
"""Frames per second at which three frames take ten hours and more."""


def halves(size=(96, 64)) -> Image.Image:
    """Red on the left, green on the right."""
    image = Image.new("RGB", size, (20, 180, 20))
    image.paste((220, 20, 20), (0, 0, size[0] // 2, size[1]))
    return image


def noise(count, size=(96, 64)):
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def decoded(path, limits=LIMITS):
    return list(decoded_frames(path, limits))


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.avi", "mpeg4")],
)
def test_frames_come_in_order_with_their_times(tmp_path, name, codec):
    path = write_video(tmp_path / name, [halves()] * 12, rate=4, codec=codec)
    frames = decoded(path)
    assert [frame.index for frame in frames] == list(range(12))
    assert [frame.seconds for frame in frames] == pytest.approx([n / 4 for n in range(12)])
    image = frames[5].image()
    assert image.size == (96, 64)
    difference = np.asarray(image, int) - np.asarray(halves(), int)
    assert np.abs(difference).mean() < 12
    assert frames[5].image(48).size == (48, 32)


def test_a_phones_rotation_is_applied(tmp_path):
    path = write_video(tmp_path / "portrait.mp4", [halves()] * 3)
    patched(path, IDENTITY_MATRIX, QUARTER_TURN, after=b"tkhd")
    image = decoded(path)[0].image()
    assert image.size == (64, 96)
    pixels = np.asarray(image, int)
    assert pixels[:40, :, 0].mean() > 180  # the left half is on top after a clockwise turn
    assert pixels[56:, :, 1].mean() > 140


def test_pixels_are_made_square(tmp_path):
    path = write_video(tmp_path / "wide.mkv", [halves()] * 3, pixel_shape=Fraction(2, 1))
    assert decoded(path)[0].image().size == (192, 64)


def test_hdr_is_recognised(tmp_path):
    path = write_video(tmp_path / "hlg.mp4", [halves()] * 3, x264="transfer=arib-std-b67")
    assert {frame.hdr for frame in decoded(path)} == {"HLG"}
    assert decoded(write_video(tmp_path / "sdr.mp4", [halves()] * 3))[0].hdr is None


def test_only_one_frame_is_held(tmp_path):
    """40 frames of 448 x 448 take 24 MB."""
    images = [halves((448, 448))] * 40
    path = write_video(tmp_path / "large.mp4", images)
    tracemalloc.start()
    try:
        survey = measured(path, LIMITS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(survey.frames) == 40
    assert peak < 10e6, peak


@pytest.mark.parametrize("options", [{}, {"live": "1"}], ids=["declared", "undeclared"])
def test_ten_hours_are_refused(tmp_path, options):
    path = write_video(tmp_path / "long.mkv", noise(3), rate=TEN_HOURS, options=options)
    with pytest.raises(VideoRefused, match=r"^long\.mkv has .* s, the limit is 600 s: cut out"):
        decoded(path)


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        (VideoLimits(frames=10), "has more frames, the limit is 10 frames: cut out"),
        (VideoLimits(seconds=1), r"has 2 s, the limit is 1 s: cut out"),
        (VideoLimits(pixels=6000), r"has 96 x 64 pixels, the limit is .*: scale it down"),
        (VideoLimits(working=0), r"decoded, the limit is 0 s of decoding: cut out .* or scale"),
        (VideoLimits(min_side=65), r"has 96 x 64 pixels, the limit is 65 pixels a side: use"),
    ],
)
def test_limits_are_enforced(tmp_path, limits, sentence):
    path = write_video(tmp_path / "a.mp4", noise(20))
    with pytest.raises(VideoRefused, match=sentence):
        decoded(path, limits)
    assert len(decoded(path)) == 20


@pytest.mark.parametrize("header", [True, False], ids=["declared", "in the frame only"])
def test_a_decompression_bomb_is_refused_before_decoding(tmp_path, header):
    """3,600 megapixels are declared by a file of a few kilobytes."""
    path = write_video(tmp_path / "bomb.avi", [halves()] * 3, codec="mjpeg")
    data = path.read_bytes()
    small, large = struct.pack(">HH", 64, 96), struct.pack(">HH", 60_000, 60_000)
    path.write_bytes(data.replace(b"\xff\xc0\x00\x11\x08" + small, b"\xff\xc0\x00\x11\x08" + large))
    assert path.read_bytes() != data
    if header:
        patched(path, struct.pack("<ii", 96, 64), struct.pack("<ii", 60_000, 60_000), after=b"strf")
    tracemalloc.start()
    try:
        with pytest.raises(VideoRefused, match=r"^bomb\.avi (has|is) "):
            decoded(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "share", "sentence"),
    [
        ("late index.mp4", 0.7, "is not a complete video"),
        ("index first.mp4", 0.7, "is damaged or truncated after"),
        ("a.mkv", 0.5, "is damaged or truncated after"),
        ("a.avi", 0.95, "is damaged or truncated after"),
    ],
)
def test_truncated_files_are_refused(tmp_path, name, share, sentence):
    options = {"movflags": "faststart"} if "first" in name else {}
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    path = write_video(tmp_path / name, noise(20), codec=codec, options=options)
    assert len(decoded(path)) == 20
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(VideoRefused, match=sentence):
        decoded(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"just a text",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile other.mp4\n",
        b"\x00\x00\x00\x18ftypmp42" + bytes(200),
    ],
    ids=["empty", "text", "playlist", "concat script", "header only"],
)
def test_other_files_are_refused(tmp_path, content):
    write_video(tmp_path / "other.mp4", [halves()] * 3)
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoRefused, match=r"^clip\.mp4 .*: "):
        decoded(path)


def test_an_image_is_no_video(tmp_path):
    halves().save(tmp_path / "photo.png")
    with pytest.raises(VideoRefused, match="not a complete video"):
        decoded(tmp_path / "photo.png")


def test_sound_without_pictures_is_refused(tmp_path):
    with pytest.raises(VideoRefused, match="has no video stream"):
        decoded(write_audio(tmp_path / "song.m4a"))


def test_cover_art_is_no_video(tmp_path):
    with pytest.raises(VideoRefused, match="has no video stream"):
        decoded(write_audio(tmp_path / "album.mp4", cover=halves()))


@pytest.mark.parametrize("name", ["empty.mkv", "empty.avi"])
def test_a_video_without_frames_is_refused(tmp_path, name):
    with pytest.raises(
        VideoRefused, match=r"^empty\.\w+ (is not a complete video|has no frame).*: copy"
    ):
        decoded(write_empty(tmp_path / name))


@pytest.mark.parametrize("name", ["missing.mp4", "."])
def test_a_path_without_a_file_is_an_error(tmp_path, name):
    with pytest.raises(ConfigError, match="give a video file"):
        decoded(tmp_path / name)


def test_random_bytes_never_raise_another_error(tmp_path):
    """Bytes of a real file are overwritten at 30 places."""
    path = write_video(tmp_path / "a.mp4", noise(6))
    data, rng = path.read_bytes(), np.random.default_rng(1)
    for number in range(30):
        damaged = bytearray(data)
        start = int(rng.integers(0, len(data) - 8))
        damaged[start : start + 8] = rng.bytes(8)
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(damaged)
        with suppress(VideoRefused):
            assert len(decoded(path)) <= 6
