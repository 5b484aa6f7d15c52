"""Pushing photos: equal photos make no new version, versions are kept, concurrent pushes are not lost."""

import json
import threading

import pytest
from PIL import Image
from typer.testing import CliRunner

from dreambooth_core.cli.datasets import app
from dreambooth_core.data.versions import names, pointer, push, read, resolved
from dreambooth_core.errors import ConfigError, DatasetRefused, StorageError
from dreambooth_core.storage.blobs import get_blob


@pytest.fixture
def photos(tiny_config):
    return tiny_config.subject.images


def test_the_same_photos_are_the_same_version(photos, file_store, tmp_path):
    first = push(file_store, photos, "robot", 32)
    assert (first.new, first.publication.number, first.publication.photos) == (True, 1, 4)
    assert first.uri == f"{file_store.uri}/datasets/robot/{first.publication.digest}.json"
    before = {key: file_store.get(key) for key in file_store.keys("")}
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for index, path in enumerate(photos.iterdir()):
        with Image.open(path) as image:  # another name, file and time, equal pixels
            image.save(renamed / f"IMG_{index}.png", compress_level=0)
    again = push(file_store, renamed, "robot", 32)
    assert not again.new
    assert again.publication == first.publication
    assert {key: file_store.get(key) for key in file_store.keys("")} == before


def test_other_photos_make_a_new_version_and_older_ones_are_kept(photos, file_store):
    first = push(file_store, photos, "robot", 32)
    (photos / "0.png").unlink()
    second = push(file_store, photos, "robot", 32)
    assert (second.new, second.publication.number) == (True, 2)
    found = pointer(file_store, "robot")
    assert [one.digest for one in found.history] == [
        first.publication.digest,
        second.publication.digest,
    ]
    assert resolved(file_store, "robot", "latest") == second.publication.digest
    assert resolved(file_store, "robot", first.publication.digest[:8]) == first.publication.digest
    old, new = (read(file_store, "robot", one.digest) for one in found.history)
    assert set(new.images) < set(old.images)
    for image in old.images:
        assert get_blob(file_store, image.blob).startswith(b"\x89PNG")
    assert names(file_store) == ["robot"]


def test_captions_keep_their_placeholders(photos, file_store):
    (photos / "0.txt").write_text("{subject}  on a table\n")
    version = push(file_store, photos, "robot", 32)
    images = read(file_store, "robot", version.publication.digest).images
    assert sorted(image.prompt for image in images) == ["", "", "", "{subject} on a table"]


def test_concurrent_pushes_are_not_lost(photos, file_store, tmp_path):
    folders = []
    for index in range(4):
        folder = tmp_path / f"set{index}"
        folder.mkdir()
        for path in sorted(photos.iterdir())[: 4 - (index == 3)]:
            (folder / path.name).write_bytes(path.read_bytes())
        (folder / "0.txt").write_text(f"{{subject}}, view {index}")
        folders.append(folder)
    threads = [
        threading.Thread(target=push, args=(file_store, folder, "robot", 32)) for folder in folders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    history = pointer(file_store, "robot").history
    assert [one.number for one in history] == [1, 2, 3, 4]
    assert len({one.digest for one in history}) == 4


def test_a_push_gives_up_after_repeated_conflicts(photos, file_store, monkeypatch):
    monkeypatch.setattr(type(file_store), "put_if", lambda *_: False)
    with pytest.raises(StorageError, match="push again"):
        push(file_store, photos, "robot", 32)


def test_a_damaged_pointer_is_not_overwritten(photos, file_store):
    file_store.put("datasets/robot/LATEST.json", b"{}")
    with pytest.raises(StorageError, match="damaged"):
        push(file_store, photos, "robot", 32)
    assert file_store.get("datasets/robot/LATEST.json") == b"{}"


def test_refused_photos_are_no_version(photos, file_store):
    with pytest.raises(DatasetRefused, match="64 x 64"):
        push(file_store, photos, "robot", 512)
    assert names(file_store) == []
    assert list(file_store.keys("")) == []


@pytest.mark.parametrize("name", ["", "../x", "a/b", "x.json", "-x", "x" * 65])
def test_a_name_cannot_leave_its_folder(name, photos, file_store):
    with pytest.raises(ConfigError, match="invalid dataset name"):
        push(file_store, photos, name, 32)
    assert list(file_store.keys("")) == []


def test_missing_datasets_and_versions_are_named(photos, file_store):
    with pytest.raises(ConfigError, match="existing: none"):
        pointer(file_store, "robot")
    push(file_store, photos, "robot", 32)
    with pytest.raises(ConfigError, match="no version begins with 00000000"):
        resolved(file_store, "robot", "00000000")
    # an unpublished manifest is no version
    file_store.put(f"datasets/robot/{'f' * 64}.json", b"{}")
    with pytest.raises(ConfigError, match="no version begins"):
        resolved(file_store, "robot", "f" * 64)


def test_the_commands(tiny_config, tmp_path, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    config = tmp_path / "config.json"
    config.write_text(tiny_config.model_dump_json())

    def output(*words: str):
        done = CliRunner().invoke(app, [*words, "--config", str(config), "--json"])
        assert done.exception is None, done.exception
        return json.loads(done.stdout)

    pushing = ("push", str(tiny_config.subject.images), "robot", "--resolution", "32")
    first, again = output(*pushing), output(*pushing)
    assert (first["new"], again["new"], first["event_sent"]) == (True, False, False)
    assert first["reference"] == f"dataset://robot@{first['publication']['digest']}"
    (listed,) = output("list")
    assert listed == {"name": "robot", **first["publication"]}
    shown = output("show", "robot")
    assert shown["history"] == [first["publication"]]
    assert [photo["size"] for photo in shown["photos"]] == [[64, 64]] * 4
    for words in (pushing, ("list",), ("show", "robot")):
        plain = CliRunner().invoke(app, [*words, "--config", str(config)])
        assert plain.exception is None
        assert first["publication"]["digest"][:16] in plain.stdout
