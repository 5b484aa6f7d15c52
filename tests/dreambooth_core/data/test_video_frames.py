"""Photos from videos of small-world renders, with and without a scripted chat server."""

import base64
import hashlib
import io
import json

import numpy as np
import pytest
from PIL import Image

from dreambooth_core.config import Dataset, Vision
from dreambooth_core.data.dataset import validate
from dreambooth_core.data.video import VideoRefused
from dreambooth_core.data.video_frames import TABLE, frames_from_video, measures, ranked
from dreambooth_core.errors import ConfigError, StageFailed
from dreambooth_core.storage.answer_cache import StoredAnswers
from dreambooth_core.vision.language.model import VisionLanguageModel
from dreambooth_core.vision.language.spending import Account
from tests.chat_server import Reply, serving
from tests.videos import film, write_video

SCENES = ("grass", "night", "beach", "pink")
REJECTED = {"reason": "a hand is in front", "same_subject": True, "unobstructed": False}
ACCEPTED = {"reason": "the same dog as a whole", "same_subject": True, "unobstructed": True}
OTHER = {"reason": "a cat", "same_subject": False, "unobstructed": True}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The path and the truth of 60 frames in four scenes, of which 24 are blurred."""
    made = film(SCENES)
    assert sum(made.blurred) == 24
    path = tmp_path_factory.mktemp("video") / "dog.mp4"
    place = {"location": "+48.8577+002.2950/", "comment": "secret remark", "artist": "J. Doe"}
    write_video(path, made.images, metadata=place, options={"movflags": "use_metadata_tags"})
    assert b"+48.8577" in path.read_bytes()
    return path, made


def number_of(frame) -> int:
    """A frame's index in the video."""
    return int(frame.file.partition("-")[2].removesuffix(".png"))


def scenes_of(result, made) -> list[str]:
    return [made.scenes[number_of(frame)] for frame in result.frames]


def images_in(request) -> list[Image.Image]:
    parts = request["messages"][-1]["content"]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1]))) for url in urls]


def judging(made, answers):
    """Serve `answers[scene]` for a frame of that scene, recognised by its corner's colour."""
    corners = {
        scene: np.array(image.getpixel((3, 3)))
        for scene, image in zip(made.scenes, made.images, strict=True)
    }

    def answer(number, request):
        corner = np.array(images_in(request)[-1].getpixel((3, 3)))
        scene = min(corners, key=lambda name: np.abs(corners[name] - corner).sum())
        found = answers.get(scene, ACCEPTED)
        return Reply(json.dumps(found) if isinstance(found, dict) else found)

    return serving(answer)


def model_at(server, cache=None) -> VisionLanguageModel:
    config = Vision(backend="openai_compatible", url=server.url, model="m", attempts=1)
    return VisionLanguageModel(config, cache, account=Account())


def contents(folder) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_sharp_frames_of_all_scenes_are_chosen(clip, tmp_path):
    path, made = clip
    result = frames_from_video(path, tmp_path / "photos", 8)
    assert len(result.frames) == 8
    assert not any(made.blurred[number_of(frame)] for frame in result.frames)
    assert {*scenes_of(result, made)} == {*SCENES}
    assert {*scenes_of(frames_from_video(path, tmp_path / "four", 4), made)} == {*SCENES}
    assert (result.decoded, result.measured, result.blurred) == (60, 60, 24)
    assert (result.badly_exposed, result.unanswered, result.hdr) == (0, 0, None)


def test_the_folder_holds_the_photos_and_their_table(clip, tmp_path):
    path, made = clip
    folder = tmp_path / "photos"
    result = frames_from_video(path, folder, 6)
    assert json.loads((folder / TABLE).read_text()) == result.model_dump(mode="json")
    assert {p.name for p in folder.iterdir()} == {TABLE, *(one.file for one in result.frames)}
    for frame in result.frames:
        assert frame.file == f"00m0{frame.seconds:.3f}-".replace(".", "s") + frame.file[-9:]
        image = Image.open(folder / frame.file)
        truth = np.asarray(made.images[number_of(frame)], int)
        assert np.abs(np.asarray(image, int) - truth).mean() < 8
        assert frame.seconds == pytest.approx(number_of(frame) / 10)
    validation = validate(folder, Dataset(), 128)
    assert len(validation.accepted) == 6
    assert validation.findings == ()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("~")]


def test_the_choice_is_deterministic(clip, tmp_path):
    first = frames_from_video(clip[0], tmp_path / "first", 5)
    again = frames_from_video(clip[0], tmp_path / "again", 5)
    assert first.frames == again.frames
    photos = [contents(tmp_path / name) for name in ("first", "again")]
    for files in photos:
        files.pop(TABLE)  # it holds the folder's name
    assert photos[0] == photos[1]


def test_no_metadata_of_the_video_is_written(clip, tmp_path):
    frames_from_video(clip[0], tmp_path / "photos", 4)
    for path in (tmp_path / "photos").iterdir():
        data = path.read_bytes()
        assert not any(secret in data for secret in (b"48.8577", b"secret remark", b"J. Doe"))
        if path.suffix == ".png":
            assert Image.open(path).info == {}


def test_repeated_views_are_left_out(tmp_path):
    still = film(("grass",), per_scene=1, blurred_share=0).images
    result = frames_from_video(write_video(tmp_path / "still.mp4", still * 20), tmp_path / "o", 5)
    assert len(result.frames) == 1
    assert result.rejected == ()  # no further candidate


def test_frames_that_validate_would_call_near_duplicates_are_rejected(tmp_path):
    """The same view in another light: its colours differ, its edges do not."""
    one = film(("grass",), per_scene=1, blurred_share=0).images[0]
    darker = one.point(lambda level: int(0.6 * level))
    path = write_video(tmp_path / "light.mp4", [one] * 5 + [darker] * 5)
    result = frames_from_video(path, tmp_path / "photos", 3)
    assert len(result.frames) == 1
    assert [one.reason for one in result.rejected] == ["near duplicate of a chosen frame"]


def test_fades_and_flashes_are_not_chosen(tmp_path):
    made = film(("grass", "beach"), per_scene=10, blurred_share=0)
    faded = [image.point(lambda level: int(0.12 * level)) for image in made.images[:4]]
    flash = [image.point(lambda level: min(255, 3 * level)) for image in made.images[-4:]]
    path = write_video(tmp_path / "fade.mp4", [*faded, *made.images, *flash])
    result = frames_from_video(path, tmp_path / "photos", 8)
    assert {number_of(frame) for frame in result.frames} <= {*range(4, 24)}
    assert result.badly_exposed >= 4


def test_a_video_without_detail_is_refused_and_nothing_is_written(tmp_path):
    path = write_video(tmp_path / "grey.mp4", [Image.new("RGB", (64, 64), "grey")] * 10)
    with pytest.raises(VideoRefused, match=r"^grey\.mp4 has no usable frame"):
        frames_from_video(path, tmp_path / "photos")
    assert {p.name for p in tmp_path.iterdir()} == {"grey.mp4"}


def test_a_damaged_video_leaves_nothing_behind(clip, tmp_path):
    path = write_video(tmp_path / "cut.mkv", clip[1].images)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(VideoRefused, match="damaged or truncated"):
        frames_from_video(path, tmp_path / "photos")
    assert {p.name for p in tmp_path.iterdir()} == {"cut.mkv"}


def test_a_folder_with_files_is_not_touched(clip, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not an empty folder"):
        frames_from_video(clip[0], tmp_path)
    assert contents(tmp_path).keys() == {"mine.txt"}
    (tmp_path / "empty").mkdir()
    assert frames_from_video(clip[0], tmp_path / "empty", 1).frames


def test_rejected_frames_are_replaced(clip, tmp_path):
    path, made = clip
    answers = {"pink": REJECTED, "night": OTHER}
    with judging(made, answers) as server, model_at(server) as model:
        result = frames_from_video(path, tmp_path / "photos", 4, noun="dog", model=model)
    assert len(result.frames) == 4
    assert {*scenes_of(result, made)} == {"grass", "beach"}
    assert not any(made.blurred[number_of(frame)] for frame in result.frames)
    assert {frame.reason for frame in result.frames} == {ACCEPTED["reason"]}
    assert {frame.checked for frame in (*result.frames, *result.rejected)} == {"yes"}
    reasons = {frame.reason for frame in result.rejected}
    assert reasons == {"obstructed: a hand is in front", "not the same dog: a cat"}
    assert all(frame.file == "" for frame in result.rejected)


def test_later_frames_are_compared_with_the_first_accepted_one(clip, tmp_path):
    path, made = clip
    with judging(made, {}) as server, model_at(server) as model:
        frames_from_video(path, tmp_path / "photos", 3, noun="dog", model=model)
    shown = [images_in(request) for request in server.requests]
    assert [len(images) for images in shown] == [1, 2, 2]
    first = [np.asarray(images[0]).tobytes() for images in shown]
    assert len({*first}) == 1
    texts = [request["messages"][-1]["content"][-1]["text"] for request in server.requests]
    assert "this very dog" not in texts[0]
    assert "this very dog" in texts[1]


def test_unanswered_frames_are_kept_and_counted(clip, tmp_path):
    path, made = clip
    with judging(made, {"pink": "I cannot say."}) as server, model_at(server) as model:
        result = frames_from_video(path, tmp_path / "photos", 4, noun="dog", model=model)
        assert model.account.counts.failures == result.unanswered > 0
    unchecked = [frame for frame in result.frames if frame.checked == "unanswered"]
    assert len(unchecked) == result.unanswered
    assert {made.scenes[number_of(frame)] for frame in unchecked} == {"pink"}
    assert "gave no answer" in unchecked[0].reason


def test_no_answer_at_all_is_an_error_and_nothing_is_written(clip, tmp_path):
    path, made = clip
    silent = dict.fromkeys(SCENES, "no")
    with (
        judging(made, silent) as server,
        model_at(server) as model,
        pytest.raises(StageFailed, match="about any of 3 frames"),
    ):
        frames_from_video(path, tmp_path / "photos", 3, noun="dog", model=model)
    assert not list(tmp_path.iterdir())


def test_a_video_of_another_subject_is_refused(clip, tmp_path):
    path, made = clip
    with (
        judging(made, dict.fromkeys(SCENES, OTHER)) as server,
        model_at(server) as model,
        pytest.raises(VideoRefused, match="not the same dog: a cat"),
    ):
        frames_from_video(path, tmp_path / "photos", 2, noun="dog", model=model)
    assert len(server.requests) <= 6
    assert not list(tmp_path.iterdir())


def test_answers_are_cached(clip, tmp_path, file_store):
    path, made = clip
    with judging(made, {}) as server:
        for name in ("first", "again"):
            with model_at(server, StoredAnswers(file_store)) as model:
                frames_from_video(path, tmp_path / name, 3, noun="dog", model=model)
    assert len(server.requests) == 3


@pytest.mark.parametrize("seed", range(6))
def test_blur_is_recognised_in_any_scene(seed):
    """Without encoding: measures and order alone, on other subjects and scenes."""
    scenes = (("brick", "snow"), ("jungle", "red"), ("city", "wood"))[seed % 3]
    made = film(scenes, per_scene=10, seed=f"blur {seed}")
    rows = [measures(n, n / 10, image) for n, image in enumerate(made.images)]
    ranking = ranked(rows, 6)
    assert not any(made.blurred[n] for n in ranking.candidates)
    assert {made.scenes[n] for n in ranking.candidates[:2]} == {*scenes}
    assert ranking.blurred + ranking.badly_exposed == sum(made.blurred)


def test_the_order_is_the_farthest_point_order():
    made = film(("grass", "pink"), per_scene=5, blurred_share=0)
    rows = [measures(n, n / 10, image) for n, image in enumerate(made.images)]
    assert ranked(rows, 2).candidates == ranked(rows, 6).candidates[:2]
    found = ranked(rows, 6).candidates
    assert len({*found}) == len(found) >= 4
    assert {made.scenes[n] for n in found[:2]} == {"grass", "pink"}
