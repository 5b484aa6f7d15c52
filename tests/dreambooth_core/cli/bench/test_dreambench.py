"""The paper's protocol: dataset layout, prompts, deviations and the table of results."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dreambooth_core.cli.bench import dreambench
from dreambooth_core.cli.bench.dreambench import (
    Bench,
    BenchSubject,
    SubjectScores,
    chosen,
    config_for,
    deviations,
    subjects_in,
    table,
    without_identity,
)
from dreambooth_core.config import Config, Evaluation, Judge
from dreambooth_core.config.prompts import SETS
from dreambooth_core.errors import ConfigError
from dreambooth_core.storage.records import Scores
from tests.chat_server import Reply, serving
from tests.forked_attempts import forked_trainings
from tests.random_backbones import build

DEFAULT_FOLDER = Path(__file__).parents[5] / "shared" / "dreambench"
REAL = Path(os.environ.get("DREAMBENCH_DIR", DEFAULT_FOLDER))
PUBLISHED = """Classes

subject_name,class
backpack,backpack
bear_plushie,stuffed animal
cat2,cat

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
]
"""


@pytest.fixture
def recipe():
    return Config.model_validate(
        {
            "name": "recipe",
            "subject": {"images": "x", "class_noun": "robot", "identifier": "qxz"},
            "evaluation": {"properties": ["{subject} of glass"], "choices": [["red", "blue"]]},
        }
    )


@pytest.fixture
def layout(tmp_path):
    """The published layout with three subjects and the other files of a clone."""
    for name in ("cat2", "backpack", "bear_plushie", ".git"):
        (tmp_path / name).mkdir()
    (tmp_path / "references_and_licenses.txt").write_text("licences")
    (tmp_path / "prompts_and_classes.txt").write_text(PUBLISHED)
    return tmp_path


def test_subjects_and_classes_are_read_from_the_published_layout(layout):
    found = subjects_in(layout)
    assert [(one.name, one.class_noun, one.prompts) for one in found] == [
        ("backpack", "backpack", "objects"),
        ("bear_plushie", "stuffed animal", "objects"),
        ("cat2", "cat", "live"),
    ]
    assert found[2].folder == layout / "cat2"


def test_without_the_list_the_folder_name_is_the_class(tmp_path):
    for name in ("dog6", "robot_toy", "7"):
        (tmp_path / name).mkdir()
    found = {one.name: one.class_noun for one in subjects_in(tmp_path)}
    assert found == {"dog6": "dog", "robot_toy": "robot toy", "7": "7"}


def test_other_layouts_are_refused(layout, tmp_path):
    with pytest.raises(ConfigError, match="is not a folder"):
        subjects_in(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="has no subfolders"):
        subjects_in(layout / "cat2")
    (layout / "zebra").mkdir()
    with pytest.raises(ConfigError, match="names no class for zebra"):
        subjects_in(layout)
    (layout / "prompts_and_classes.txt").write_text("Classes\n")
    with pytest.raises(ConfigError, match="holds no lines"):
        subjects_in(layout)


def test_subjects_are_chosen_by_number_or_by_name(layout):
    subjects = subjects_in(layout)
    assert chosen(subjects, None) == subjects
    assert chosen(subjects, "2") == subjects[:2]
    assert [one.name for one in chosen(subjects, "cat2, backpack,cat2")] == ["cat2", "backpack"]
    for selection in ("0", "4", "dog", "cat2,"):
        with pytest.raises(ConfigError):
            chosen(subjects, selection)


@pytest.mark.parametrize(("noun", "name"), [("dog", "live"), ("toy", "objects")])
def test_every_published_prompt_is_a_scene(recipe, noun, name):
    subject = BenchSubject("one", Path("photos/one"), noun)
    made = config_for(recipe, subject)
    every = [prompt for prompts in SETS[name].values() for prompt in prompts]
    assert list(made.evaluation.kinds) == every
    assert set(made.evaluation.kinds.values()) == {"scene"}
    assert made.evaluation.choices == ()
    assert (made.name, made.subject.images) == ("recipe-one", Path("photos/one"))
    assert (made.subject.class_noun, made.subject.identifier) == (noun, "qxz")
    assert made.subject.fill(made.subject.class_prompt) == f"a {noun}"
    unchanged = {"name", "subject", "evaluation"}
    assert made.model_dump(exclude=unchanged) == recipe.model_dump(exclude=unchanged)
    assert len(config_for(recipe, subject, 3).evaluation.kinds) == 3


def test_a_config_that_is_invalid_for_a_subject_is_refused(recipe):
    subject = recipe.subject.model_copy(update={"identifier": "a"})
    recipe = recipe.model_copy(update={"subject": subject})
    with pytest.raises(ConfigError, match=r"photos/dog: .* must not contain the identifier"):
        config_for(recipe, BenchSubject("dog", Path("photos/dog"), "dog"))


def test_folder_names_become_valid_run_names(recipe):
    names = ("Hündin (2)", "Hündin 2", "dog6", "x" * 80, "x" * 81)
    made = [config_for(recipe, BenchSubject(name, Path(name), "dog")).name for name in names]
    assert made[0].startswith(f"{recipe.name}-H-ndin-2-")
    assert made[2] == f"{recipe.name}-dog6"
    assert len(set(made)) == len(names)


def test_deviations_from_the_paper_are_listed(recipe):
    def of(resolution: int, **rules: object) -> Config:
        model = recipe.model.model_copy(update={"resolution": resolution})
        return recipe.model_copy(update={"model": model, "evaluation": Evaluation(**rules)})

    assert deviations(of(512, lpips="timm/vgg16.tv_in1k"), 30, None) == []
    other = of(64, seeds=1, clip="my/clip", identity="my/encoder", preprocessing="own")
    sentences = deviations(other, 2, 5)
    words = ("2 of the 30", "5 of the 25", "1 images", "64 pixels", "own, not paper")
    words += ("my/encoder", "my/clip", "no DIV")
    for sentence, word in zip(sentences, words, strict=True):
        assert word in sentence


def subject_scores(name: str, **ours: float) -> SubjectScores:
    return SubjectScores(
        subject=name,
        class_noun="dog",
        photos=4,
        weights="w",
        scores="s",
        ours=ours,
        base={key: value - 0.2 for key, value in ours.items()},
        real={"DINO": 0.9},
    )


def test_the_table_has_subjects_means_and_the_papers_values():
    scores = (
        subject_scores("a", **{"DINO": 0.5, "CLIP-T": 0.3, "PRES": 0.4}),
        subject_scores("b", **{"DINO": 0.7, "CLIP-T": 0.3}),
    )
    ours = dreambench._means(one.ours for one in scores)
    assert ours.keys() == {"DINO", "CLIP-T"}
    assert ours["DINO"].value == pytest.approx(0.6)
    assert ours["DINO"].low < 0.5 < 0.7 < ours["DINO"].high
    assert (ours["CLIP-T"].low, ours["CLIP-T"].high) == pytest.approx((0.3, 0.3))
    bench = Bench(
        recipe="r",
        subjects=scores,
        ours=ours,
        base=dreambench._means(one.base for one in scores),
        real=dreambench._means(one.real for one in scores),
        paper={name: dict(values) for name, values in dreambench.PAPER.items()},
        deviations=(),
    )
    columns, *rows = table(bench)
    assert columns == ["", "DINO ↑", "CLIP-I ↑", "CLIP-T ↑", "PRES ↓", "DIV ↑"]
    assert all(len(row) == len(columns) for row in rows)
    ours = {row[0]: row[1:] for row in rows[: rows.index(["in the paper", *[""] * 5])]}
    assert ours["a"] == ["0.500", "", "0.300", "0.400", ""]
    assert ours["mean"] == ["0.600", "", "0.300", "", ""]
    assert float(ours["  95 % from"][0]) < 0.5 < 0.7 < float(ours["  to"][0])
    assert ours["untouched base"] == ["0.400", "", "0.100", "", ""]
    assert ours["real photos"][0] == "0.900"
    papers = {row[0].strip(): row[1:] for row in rows[len(ours) + 1 :]}
    assert papers["real photos"] == ["0.774", "0.885", "", "", ""]
    assert papers["DreamBooth, SD"] == ["0.668", "0.803", "0.305", "", ""]
    assert papers["Imagen, prior kept"] == ["0.684", "0.815", "0.308", "0.493", "0.391"]


@pytest.mark.skipif(not REAL.is_dir(), reason="set DREAMBENCH_DIR to the published folder")
def test_the_published_dataset_is_read(recipe):
    found = {one.name: one for one in subjects_in(REAL)}
    nouns = {"can": "can", "cat2": "cat", "dog6": "dog", "rc_car": "toy", "red_cartoon": "cartoon"}
    assert {name: found[name].class_noun for name in nouns} == nouns
    assert {name for name, one in found.items() if one.prompts == "live"} >= {"cat2", "dog", "dog6"}
    for one in found.values():
        config_for(recipe, one)


def photos(folder: Path, seed: int) -> None:
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for index in range(3):
        blots = draw.integers(0, 255, (6, 6, 3), dtype=np.uint8)
        picture = Image.fromarray(blots).resize((64, 64), Image.Resampling.BICUBIC)
        picture.save(folder / f"{index:02d}.jpg")


@pytest.fixture
def judged_recipe(tracked_config, tmp_path):
    """A config with LPIPS and a judge that scores 2 of 4 for the subject and 0 for jungle prompts."""

    def answer(number, request):
        text = request["messages"][0]["content"][-1]["text"]
        score = 2 if "this very dog" in text else 0 if "jungle" in text else 4
        confirmation = {"reason": "seen", "answer": "yes"}
        return Reply(json.dumps({"rationale": "seen", "score": score, **confirmation}))

    backbone = build("alex", tmp_path / "alex")
    with serving(answer) as server:
        update = {"lpips": str(backbone), "judge": Judge(url=server.url, model="tiny")}
        rules = tracked_config.evaluation.model_copy(update=update)
        yield tracked_config.model_copy(update={"evaluation": rules}), server


@pytest.mark.slow
def test_a_bench_trains_and_evaluates_a_subject_once(judged_recipe, tmp_path):
    from dreambooth_core.data.ingest import ingest
    from dreambooth_core.metrics.embeddings import StoredImages
    from dreambooth_core.metrics.statistics import rows_of
    from dreambooth_core.storage.records import Scores
    from dreambooth_core.storage.stores import open_store
    from dreambooth_core.vision.encoders import ImageEncoder

    recipe, server = judged_recipe
    photos(tmp_path / "set" / "dog6", 0)
    subjects = subjects_in(tmp_path / "set")
    with forked_trainings():
        bench = dreambench.run(recipe, subjects, prompts=2)
    (one,) = bench.subjects
    assert one.ours.keys() == bench.ours.keys() == set(dreambench.MEASURES.values())
    kept = dreambench.results_path(recipe)
    assert Bench.model_validate_json(kept.read_text()) == bench

    store = open_store(recipe.storage)
    before, asked = sorted(store.keys("")), len(server.requests)
    assert asked > 0
    assert dreambench.run(recipe, subjects, prompts=2) == bench
    assert sorted(store.keys("")) == before
    assert len(server.requests) == asked

    scores = Scores.model_validate_json(store.get(one.scores.removeprefix(f"{store.uri}/")))
    assert (scores.metrics["judged_subject"], scores.base_metrics["judged_subject"]) == (0.5, 0.5)
    assert scores.metrics["judged_prompt"] == 0.5
    assert scores.ids["judged_subject"].startswith("judged_subject@tiny-")
    assert scores.ids["lpips_diversity"].startswith("lpips_diversity@lpips-0.1-")

    # DINO computed directly: every generated image against every photo
    config = config_for(recipe, subjects[0], 2)
    drawn = [row for row in rows_of(store, scores) if row.kind == "scene"]
    assert [row.prompt for row in drawn] == [p for p in SETS["live"]["scene"][:2] for _ in range(2)]
    encoder = ImageEncoder(config.evaluation.identity, None)
    made = encoder.identity_images(list(StoredImages(store, scores.samples.images)))
    real = encoder.identity_images(
        list(StoredImages(store, ingest(config, store)[0].images.images))
    )
    cosines = [float(a @ b) for a in made for b in real]
    assert one.ours["DINO"] == pytest.approx(np.mean(cosines), abs=1e-5)


def test_a_missing_folder_is_reported_in_one_sentence(recipe, tiny_base, tmp_path):
    config = tmp_path / "recipe.yaml"
    document = recipe.model_dump(mode="json")
    document["model"]["base"] = str(tiny_base)
    config.write_text(yaml.safe_dump(document))
    words = ("bench", "dreambench", tmp_path / "nowhere", "--config", config)
    command = [sys.executable, "-m", "dreambooth_core.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert "nowhere is not a folder" in done.stderr
    assert done.stderr.count("\n") == 1


def test_scores_of_a_packaged_encoder_are_not_shown_as_dino(recipe):
    """DINO and PRES are left out beside the paper's; CLIP-T and DIV stay."""
    measured = {
        "subject_fidelity": 0.9,
        "pres": 0.4,
        "prompt_fidelity": 0.3,
        "lpips_diversity": 0.5,
    }
    scores = Scores.model_construct(metrics=measured, base_metrics=measured, reference=measured)
    for kind in ("metrics", "base_metrics", "reference"):
        assert set(getattr(without_identity(scores), kind)) == {
            "prompt_fidelity",
            "lpips_diversity",
        }
    rules = Evaluation(identity="builtin:efficientnet_lite2", lpips="timm/vgg16.tv_in1k")
    model = recipe.model.model_copy(update={"resolution": 512})
    packaged = recipe.model_copy(update={"model": model, "evaluation": rules})
    assert deviations(packaged, 30, None) == [
        "no DINO: builtin:efficientnet_lite2 is another encoder"
    ]
