"""The task of video frames, called without a server."""

import json

from dreambooth_core.config import Config, Vision
from tasks.data import choose_video_frames
from tests.chat_server import Reply, scripted
from tests.videos import film, write_video


def test_frames_are_checked_by_the_configs_model_if_it_has_one(tmp_path):
    clip = write_video(tmp_path / "a.mp4", film(("grass", "beach"), 3, blurred_share=0).images)
    config = Config.model_validate(
        {
            "name": "x",
            "subject": {"images": "x", "class_noun": "dog"},
            "storage": {"uri": f"file://{tmp_path / 'store'}"},
        }
    )
    plain = choose_video_frames.fn(config, clip, tmp_path / "plain", 2)
    assert {frame.checked for frame in plain.frames} == {"no"}
    verdict = {"reason": "the dog", "same_subject": True, "unobstructed": True}
    with scripted(Reply(json.dumps(verdict))) as server:
        vision = Vision(backend="openai_compatible", url=server.url, model="m")
        asking = config.model_copy(update={"vision": vision})
        checked = choose_video_frames.fn(asking, clip, tmp_path / "checked", 2)
    assert {frame.checked for frame in checked.frames} == {"yes"}
    assert "a dog is in the image" in server.requests[0]["messages"][0]["content"][-1]["text"]
    assert len({frame.file for frame in (*plain.frames, *checked.frames)}) == 2
