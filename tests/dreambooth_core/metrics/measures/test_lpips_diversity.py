"""LPIPS diversity: mean over pairs of images of one prompt."""

from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from dreambooth_core.config import Config
from dreambooth_core.metrics import Evidence, ImageEmbeddings
from dreambooth_core.metrics.measures import lpips_diversity
from dreambooth_core.vision.lpips import LpipsNetwork, distance
from tests.random_backbones import build


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return str(build("alex", tmp_path_factory.mktemp("backbone") / "alex"))


@pytest.fixture
def config():
    return Config.model_validate({"name": "x", "subject": {"images": "x", "class_noun": "robot"}})


def random_images(count):
    draw = np.random.default_rng(0)
    blots = [draw.integers(0, 255, (4, 4, 3), dtype=np.uint8) for _ in range(count)]
    return [Image.fromarray(each).resize((64, 64)) for each in blots]


def with_lpips(config, source):
    rules = config.evaluation.model_copy(update={"lpips": source})
    return config.model_copy(update={"evaluation": rules})


def evidence(config, images, prompts):
    return Evidence(
        generated=ImageEmbeddings(images=images),
        photos=ImageEmbeddings(),
        prompts=prompts,
        kinds=("scene",) * len(prompts),
        config=config,
    )


def test_each_image_is_compared_with_the_others_of_its_prompt(config, backbone):
    config, images = with_lpips(config, backbone), random_images(6)
    prompts = ("a", "b", "a", "alone", "b", "a")
    values = lpips_diversity.measure(evidence(config, images, prompts))
    network = LpipsNetwork(backbone, None)
    features = [network.features(image) for image in images]
    in_a = {
        pair: distance(features[pair[0]], features[pair[1]]) for pair in combinations((0, 2, 5), 2)
    }
    assert values[0] == pytest.approx((in_a[0, 2] + in_a[0, 5]) / 2)
    assert values[[0, 2, 5]].mean() == pytest.approx(np.mean(list(in_a.values())))
    assert values[1] == values[4] == pytest.approx(distance(features[1], features[4]))
    assert np.isnan(values[3])


def test_equal_images_have_no_diversity(config, backbone):
    config, (one, other) = with_lpips(config, backbone), random_images(2)
    values = lpips_diversity.measure(evidence(config, [one, one, other, other], tuple("aabb")))
    assert values.tolist() == [0, 0, 0, 0]


def test_without_a_backbone_there_is_no_value(config, backbone):
    assert lpips_diversity.measure(evidence(config, random_images(2), ("a", "a"))) is None
    assert lpips_diversity.measure(evidence(None, random_images(2), ("a", "a"))) is None
    assert lpips_diversity.model(config) is None
    named = lpips_diversity.model(with_lpips(config, backbone))
    assert named.startswith("lpips-0.1-")
    assert named != lpips_diversity.model(with_lpips(config, "timm/vgg16.tv_in1k"))
