"""Sampling jobs: the images they list, and one sentence per mistake."""

import json
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core.batch_sampling.job import (
    SamplingJob,
    WeightedModel,
    image_specs,
    parse_mix,
    read_job,
)
from dreambooth_core.errors import ConfigError
from dreambooth_core.randomness import seed_for


def _job(**document: Any) -> SamplingJob:
    return SamplingJob.model_validate(
        {"name": "x", "models": "dog", "prompts": "a {subject}"} | document
    )


def test_all_combinations_each_once():
    job = _job(
        models=["dog", "cat"],
        prompts=["a", "b"],
        seeds=[7, 8],
        guidance=[3, None],
        noise_schedulers=["DDIMScheduler"],
    )
    found = image_specs(job)
    assert job.count == len(found) == len(set(found)) == 16
    assert {spec.guidance for spec in found} == {3.0, None}
    assert {spec.noise_scheduler for spec in found} == {"DDIMScheduler"}
    assert [spec.seed for spec in found[:4]] == [7, 8, 7, 8]


def test_a_number_of_seeds_gives_the_seeds_of_a_run():
    wanted = [seed_for(5, "sample", index) for index in range(3)]
    assert [spec.seed for spec in image_specs(_job(seeds=3, seed=5))] == wanted
    assert [spec.seed for spec in image_specs(_job(seeds=[3]))] == [3]


def test_keys_beside_groups_are_their_defaults():
    job = _job(seeds=1, groups=[{"prompts": "one"}, {"prompts": ["two", "three"], "seeds": 2}])
    assert [spec.template for spec in image_specs(job)] == ["one", "two", "two", "three", "three"]
    assert {spec.model for spec in image_specs(job)} == {"dog"}


def test_duplicates_are_drawn_once():
    assert len(image_specs(_job(groups=[{"seeds": 2}, {"seeds": 3}]))) == 3


def test_yaml_and_csv_give_equal_jobs(tmp_path: Path):
    (tmp_path / "sea side.yaml").write_text(
        "models: [dog@champion, 'dog:0.5 + hat/2']\n"
        "groups:\n"
        "  - {prompts: 'a {subject}, smiling', seeds: 2, guidance: [3, 5]}\n"
        "  - {prompts: a {class}, seeds: [9], steps: 20}\n".replace("a {class}", "'a {class}'")
    )
    (tmp_path / "sea side.csv").write_text(
        "models,prompts,seeds,guidance,steps\n"
        'dog@champion|dog:0.5 + hat/2,"a {subject}, smiling",2,3|5,\n'
        "dog@champion | dog:0.5 + hat/2,a {class},9|,,20\n"
    )
    from_yaml, from_csv = (read_job(tmp_path / f"sea side.{end}") for end in ("yaml", "csv"))
    assert from_yaml == from_csv
    assert from_csv.name == "sea-side"
    assert from_csv.count == 10


def test_mixes_are_parsed():
    assert parse_mix("dog") == (WeightedModel("dog", 1.0),)
    assert parse_mix("dog@champion:0.8 + hat/2") == (
        WeightedModel("dog@champion", 0.8),
        WeightedModel("hat/2", 1.0),
    )
    assert parse_mix("runs/dog.yaml:0") == (WeightedModel("runs/dog.yaml", 0.0),)


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({"prompts": "{colour} dog"}, "has {colour}, but may only hold {subject}, {identifier}"),
        ({"prompts": "a {subject"}, "has a brace that does not close"),
        ({"models": "dog:x"}, "must be like NAME@champion, or NAME:0.8 + OTHER/2:0.5"),
        ({"models": "dog:3"}, "the strength 3 in 'dog:3' must be at most 2"),
        ({"models": []}, "models: "),
        ({"seeds": 0}, "seeds"),
        ({"seeds": [-1]}, "seeds"),
        ({"guidance": 0.5}, "guidance"),
        ({"noise_schedulers": "a.b"}, "noise_schedulers"),
        ({"colour": "red"}, "colour: is no option"),
        ({"groups": [{"colour": 1}]}, "groups.0.colour"),
        ({"groups": []}, "groups"),
        ({"seeds": 2000}, "these are 2000 images, more than limit 1000: ask for fewer, or raise"),
        ({"name": "a/b"}, "name"),
        ({"steps": [20, 1500]}, "steps"),
        ({"size": [200000, 64]}, "size"),
        ({"prompts": "{subject:>30}"}, "has {subject:>30}, but may only hold"),
    ],
)
def test_a_mistake_is_refused_in_one_sentence(
    tmp_path: Path, document: dict[str, Any], sentence: str
):
    import yaml

    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({"models": "dog", "prompts": "a dog"} | document))
    with pytest.raises(ConfigError) as caught:
        read_job(path)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("models,prompts\n", "has no rows"),
        ("models,prompts\ndog,a,b\n", "row 1 does not have one cell per column"),
        ("models,prompts\ndog\n", "row 1 does not have one cell per column"),
        ("models,prompts,seeds\ndog,a,many\n", "row 1: seeds"),
        ("models,prompts,seeds\ndog,a,1\n,,\ndog,a,many\n", "row 3: seeds"),
        ("models,prompts,prompts\ndog,a,b\n", "a column 'prompts' that is unknown or given twice"),
        ("Models,Prompts\ndog,a\n", "a column 'Models' that is unknown"),
        ("models;prompts\ndog;a\n", "a column 'models;prompts' that is unknown"),
    ],
)
def test_a_mistake_in_a_csv_is_refused(tmp_path: Path, text: str, sentence: str):
    path = tmp_path / "job.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        read_job(path)


def test_rows_without_text_are_skipped(tmp_path: Path):
    path = tmp_path / "job.csv"
    path.write_text("models,prompts\ndog,a\n,\n , \n")
    assert len(read_job(path).groups) == 1


def test_a_surrogate_pair_is_one_character(tmp_path: Path):
    """JSON escapes a character beyond 16 bits as two surrogates, and JSON is YAML."""
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps({"models": "dog", "prompts": "a \N{DOG FACE}"}))
    assert read_job(path).groups[0].prompts == ("a \N{DOG FACE}",)
    path.write_text('{"models": "dog", "prompts": "a \\ud83d"}')
    with pytest.raises(ConfigError, match="not readable YAML"):
        read_job(path)


def test_a_missing_file_is_refused(tmp_path: Path):
    for end in ("yaml", "csv"):
        with pytest.raises(ConfigError, match="no sampling job at"):
            read_job(tmp_path / f"nowhere.{end}")
