"""Photo folders: findings with their levels, and the stored copies."""

import hashlib
import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from rich.console import Console

from dreambooth_core.config import Config, Dataset
from dreambooth_core.data.dataset import collect, findings_table, validate
from dreambooth_core.digests import digest_json
from dreambooth_core.errors import ConfigError, DatasetRefused
from dreambooth_core.storage import blobs

RULES = Dataset()
SIDE = 64


def photograph(seed, size=(160, 160)):
    """Photo-like texture: noise at several scales, weaker at finer ones."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 255, (n, n, 3)).astype(np.uint8)).resize(
                size, Image.Resampling.BICUBIC
            ),
            dtype=np.float32,
        )
        / n**0.5
        for n in (4, 8, 16, 32, 64, 128, 256)
    ]
    total = sum(layers)
    return Image.fromarray((total * 255 / total.max()).astype(np.uint8))


def gps_exif():
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x0110] = "Telltale 12"
    exif[0x8825] = {1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 18.0)}
    return exif


@pytest.fixture
def folder(tmp_path):
    """Five good photos, as PNG."""
    path = tmp_path / "photos"
    path.mkdir()
    for index in range(5):
        photograph(index).save(path / f"{index}.png")
    return path


def found(folder, rules=RULES, resolution=SIDE):
    """(level, file, check) of every finding."""
    return {(f.level, f.file, f.check) for f in validate(folder, rules, resolution).findings}


def fingerprints(folder):
    return {
        path.name: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in folder.iterdir()
        if path.is_file()
    }


def config_of(folder, **dataset):
    return Config.model_validate(
        {
            "name": "robot",
            "subject": {"images": folder, "class_noun": "robot"},
            "model": {"resolution": SIDE},
            "dataset": dataset,
        }
    )


def test_good_photos_have_no_findings_and_are_not_changed(folder):
    before = fingerprints(folder)
    validation = validate(folder, RULES, SIDE)
    assert validation.findings == ()
    assert not validation.refused
    assert validation.accepted == ("0.png", "1.png", "2.png", "3.png", "4.png")
    assert fingerprints(folder) == before


def test_unusable_files_are_refused(folder):
    (folder / "text.jpg").write_text("hello")
    (folder / "empty.png").write_bytes(b"")
    whole = io.BytesIO()
    photograph(9).save(whole, "JPEG")
    (folder / "cut.jpg").write_bytes(whole.getvalue()[:2000])
    photograph(9, (160, 63)).save(folder / "low.png")
    frames = [photograph(7), photograph(8)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    assert found(folder) == {
        ("hard", "text.jpg", "not an image"),
        ("hard", "empty.png", "not an image"),
        ("hard", "cut.jpg", "corrupt"),
        ("hard", "low.png", "too small"),
        ("hard", "moving.gif", "animated"),
    }


def test_files_above_the_size_limits_are_refused(folder):
    size = (folder / "0.png").stat().st_size
    bytes_found = found(folder, Dataset(max_bytes=max(1, size - 1), min_images=1))
    assert ("hard", "0.png", "too large") in bytes_found
    pixels_found = found(folder, Dataset(max_pixels=160 * 160 - 1))
    assert ("hard", "0.png", "too large") in pixels_found
    assert found(folder, Dataset(max_pixels=160 * 160)) == set()


def test_the_least_side_is_the_resolution_by_default(folder):
    assert ("hard", "0.png", "too small") in found(folder, resolution=168)
    assert found(folder, Dataset(min_side=160), resolution=168) == set()


def test_copies_warn_and_count_once(folder):
    (folder / "5.png").write_bytes((folder / "0.png").read_bytes())
    photograph(1).save(folder / "6.bmp")
    assert found(folder) == {
        ("soft", "5.png", "exact duplicate"),
        ("soft", "6.bmp", "exact duplicate"),
    }
    assert len(validate(folder, RULES, SIDE).accepted) == 5


def test_copies_do_not_count_towards_the_minimum(folder):
    for index in (2, 3, 4):
        (folder / f"{index}.png").write_bytes((folder / "0.png").read_bytes())
    assert ("hard", ".", "too few") in found(folder)


def test_altered_copies_give_a_warning_by_kind(folder):
    photograph(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "a.png")
    photograph(1).resize((120, 120)).save(folder / "b.jpg", quality=80)
    moved = np.roll(np.asarray(photograph(2)), (10, 20), (0, 1))
    Image.fromarray(moved).save(folder / "c.png")
    assert found(folder) == {
        ("soft", "a.png", "mirrored duplicate"),
        ("soft", "b.jpg", "near duplicate"),
        ("soft", "c.png", "shifted duplicate"),
    }


def test_a_window_shifted_by_a_third_gives_a_warning_with_the_overlap(folder):
    whole = photograph(9, (360, 300))
    whole.crop((0, 0, 270, 300)).save(folder / "a.png")
    whole.crop((90, 0, 360, 300)).save(folder / "b.jpg", quality=75)
    (finding,) = validate(folder, RULES, SIDE).findings
    assert (finding.level, finding.file, finding.check) == ("soft", "b.jpg", "shifted duplicate")
    assert re.fullmatch(r"similarity 0\.9\d\d with a\.png in an overlap of 6\d%", finding.measure)
    assert (finding.limit, finding.remedy) == ("at most 0.8", "keep one, add another view instead")


def test_a_blurred_photo_among_sharp_ones_gives_a_warning(folder):
    photograph(9).filter(ImageFilter.GaussianBlur(3)).save(folder / "soft.png")
    assert found(folder) == {("soft", "soft.png", "blur")}


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "hard too few"), (2, "hard too few"), (3, "soft too few"), (5, ""), (6, "soft too many")],
)
def test_the_number_of_photos(tmp_path, count, expected):
    for index in range(count):
        photograph(index).save(tmp_path / f"{index}.png")
    findings = validate(tmp_path, Dataset(many_images=5, max_images=6), SIDE).findings
    assert " ".join(f"{f.level} {f.check}" for f in findings) == expected


def test_too_many_photos_are_refused_before_decoding(tmp_path):
    for index in range(7):
        (tmp_path / f"{index}.jpg").write_text("not even an image")
    validation = validate(tmp_path, Dataset(max_images=6), SIDE)
    assert [(f.level, f.check) for f in validation.findings] == [("hard", "too many")]


def test_sidecars_are_accepted_and_other_files_named(folder):
    silent = ("0.txt", "meta.json", "captions.jsonl", "LICENSE", "licenses.md", ".DS_Store")
    for name in (*silent, "._0.png", "notes.docx"):
        (folder / name).write_bytes(b"some bytes")
    (folder / "more").mkdir()
    (folder / "raw.dng").write_bytes(b"II*\0some bytes")
    assert found(folder) == {
        ("soft", "notes.docx", "ignored"),
        ("soft", "more", "ignored"),
        ("soft", "raw.dng", "ignored"),
    }


def test_a_photo_is_recognised_by_its_content(folder):
    photograph(5).save(folder / "5.jpg", "PNG")
    photograph(6).save(folder / "6.txt", "PNG")
    photograph(7).save(folder / "7", "JPEG")
    photograph(8).save(folder / "8.JPG", "JPEG")
    validation = validate(folder, RULES, SIDE)
    assert {(f.level, f.file, f.check) for f in validation.findings} == {
        ("soft", name, "extension") for name in ("5.jpg", "6.txt", "7")
    }
    assert len(validation.accepted) == 9


def test_links_may_not_leave_the_folder(folder, tmp_path):
    photograph(6).save(tmp_path / "elsewhere.png")
    (folder / "out.png").symlink_to(tmp_path / "elsewhere.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "pipe.png")  # must not block
    assert found(folder) == {
        ("hard", "out.png", "link"),
        ("hard", "gone.png", "unreadable"),
        ("hard", "pipe.png", "unreadable"),
    }


def test_transparency_and_panoramas_give_warnings(folder):
    glass = photograph(6).convert("RGBA")
    glass.putalpha(Image.linear_gradient("L").resize(glass.size))
    glass.save(folder / "glass.png")
    photograph(7, (330, 160)).save(folder / "wide.png")
    assert found(folder) == {
        ("soft", "glass.png", "transparency"),
        ("soft", "wide.png", "aspect"),
    }


def test_a_missing_folder_is_a_wrong_option(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        validate(tmp_path / "none", RULES, SIDE)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is not a folder"):
        validate(tmp_path / "file", RULES, SIDE)


def test_the_digest_depends_on_pixels_and_not_on_names(folder):
    first = validate(folder, RULES, SIDE).digest
    (folder / "0.png").rename(folder / "z.png")
    photograph(1).save(folder / "1.bmp")
    (folder / "1.png").unlink()
    assert validate(folder, RULES, SIDE).digest == first
    photograph(11).save(folder / "1.bmp")
    assert validate(folder, RULES, SIDE).digest != first


def test_unprintable_names_are_escaped(folder):
    strange = os.fsencode(folder) + b"/\x1b[31mred\xff.jpg"
    Path(os.fsdecode(strange)).write_bytes(b"no image")
    (folder / "[bold]x.jpg").write_bytes(b"no image")
    validation = validate(folder, RULES, SIDE)
    document = json.loads(validation.model_dump_json())
    assert {f["file"] for f in document["findings"]} == {r"\x1b[31mred\udcff.jpg", "[bold]x.jpg"}
    console = Console(file=io.StringIO(), width=200)
    console.print(findings_table(validation))
    text = console.file.getvalue()
    assert "[bold]x.jpg" in text
    assert "refused" in text
    assert "\x1b[31m" not in text


def test_every_finding_is_complete(folder):
    (folder / "text.jpg").write_text("hello")
    (folder / "5.png").write_bytes((folder / "0.png").read_bytes())
    for finding in validate(folder, Dataset(many_images=4), SIDE).findings:
        assert all((finding.file, finding.measure, finding.limit, finding.remedy))


def test_collected_copies_are_upright_and_without_metadata(folder, file_store):
    exif = gps_exif()
    photograph(5, (200, 160)).save(folder / "phone.jpg", quality=95, exif=exif)
    images, validation = collect(file_store, config_of(folder))
    assert images.count == len(validation.accepted) == 6
    sizes = []
    for image in images.images:
        data = blobs.get_blob(file_store, image.blob)
        assert image.name == f"{image.blob.sha256[:16]}.png"
        assert b"Telltale" not in data
        assert b"eXIf" not in data
        decoded = Image.open(io.BytesIO(data))
        assert not decoded.getexif()
        sizes.append(decoded.size)
    assert sorted(sizes) == [(160, 160)] * 5 + [(160, 200)]


def test_the_same_photos_make_the_same_set(folder, file_store):
    first, _ = collect(file_store, config_of(folder))
    (folder / "0.png").rename(folder / "renamed.png")
    again, _ = collect(file_store, config_of(folder))
    assert again == first


def test_a_refused_set_stores_nothing(folder, file_store):
    (folder / "text.jpg").write_text("hello")
    with pytest.raises(DatasetRefused, match=r"text\.jpg.*no image format.*remove it"):
        collect(file_store, config_of(folder))
    assert list(file_store.keys("")) == []


def mask_of(photo, box=(20, 20, 100, 100)):
    mask = Image.new("L", photo.size)
    mask.paste(255, box)
    return mask


def test_captions_and_masks_are_neither_photos_nor_unknown_files(folder):
    (folder / "0.txt").write_text("{subject} in the snow")
    mask_of(photograph(1)).save(folder / "1.mask.png")
    mask_of(photograph(2)).save(folder / "2.MASK.PNG")
    assert found(folder) == set()
    subject = config_of(folder).subject
    validation = validate(folder, RULES, SIDE, subject)
    assert validation.findings == ()
    assert len(validation.accepted) == 5


def test_wrong_captions_and_masks_are_named(folder):
    (folder / "0.txt").write_text("a robot in the snow")
    (folder / "1.txt").write_text("{colour} sks robot")
    mask_of(photograph(2)).resize((160, 100)).save(folder / "2.mask.png")
    Image.new("L", (160, 160)).save(folder / "3.mask.png")
    mask_of(photograph(4)).save(folder / "9.mask.png")
    validation = validate(folder, RULES, SIDE, config_of(folder).subject)
    assert {(f.level, f.file, f.check) for f in validation.findings} == {
        ("soft", "0.txt", "caption"),
        ("hard", "1.txt", "caption"),
        ("hard", "2.mask.png", "mask"),
        ("hard", "3.mask.png", "mask"),
        ("soft", "9.mask.png", "ignored"),
        ("soft", ".", "too few"),
    }


def test_captions_and_masks_are_stored_with_their_photo(folder, file_store):
    (folder / "0.txt").write_text("{subject} in the snow")
    mask_of(photograph(1)).save(folder / "1.mask.png")
    glass = photograph(7, (200, 160))
    glass.putalpha(mask_of(glass))
    glass.save(folder / "7.png")
    images, _ = collect(file_store, config_of(folder))
    by_pixels = {
        Image.open(io.BytesIO(blobs.get_blob(file_store, image.blob))).tobytes(): image
        for image in images.images
    }
    captioned, masked = (by_pixels[photograph(seed).tobytes()] for seed in (0, 1))
    assert captioned.prompt == "sks robot in the snow"
    assert captioned.mask is None
    assert masked.prompt == ""
    stored = Image.open(io.BytesIO(blobs.get_blob(file_store, masked.mask)))
    assert (stored.mode, stored.tobytes()) == ("L", mask_of(photograph(1)).tobytes())
    transparent = next(image for image in images.images if image.size == (160, 200))
    stored = Image.open(io.BytesIO(blobs.get_blob(file_store, transparent.mask)))
    assert stored.tobytes() == mask_of(glass).tobytes()
    assert {image.size for image in images.images} == {(160, 160), (160, 200)}


def test_the_digest_covers_captions_and_masks(folder, file_store):
    plain = collect(file_store, config_of(folder))[0]
    old = [[image.name, image.blob.sha256, image.prompt] for image in plain.images]
    assert plain.digest == digest_json(old)  # the format from before masks and subjects
    digests = {plain.digest}
    (folder / "0.txt").write_text("sks robot in the snow")
    digests.add(collect(file_store, config_of(folder))[0].digest)
    mask_of(photograph(1)).save(folder / "1.mask.png")
    digests.add(collect(file_store, config_of(folder))[0].digest)
    mask_of(photograph(1), (0, 0, 9, 9)).save(folder / "1.mask.png")
    digests.add(collect(file_store, config_of(folder))[0].digest)
    assert len(digests) == 4


@pytest.fixture
def two_subjects(folder, tmp_path):
    """A config of two subjects that share one photo."""
    other = tmp_path / "others"
    other.mkdir()
    for index in (4, 20, 21):
        photograph(index).save(other / f"{index}.png")
    (other / "20.txt").write_text("{subject} asleep")
    more = [{"images": other, "class_noun": "cat", "identifier": "ohwx"}]
    return Config.model_validate(
        {
            "name": "both",
            "subject": {"images": folder, "class_noun": "robot"},
            "more_subjects": more,
            "model": {"resolution": SIDE},
        }
    )


def test_several_subjects_make_one_set(two_subjects, file_store):
    images, validation = collect(file_store, two_subjects)
    assert [image.subject for image in images.images] == [0] * 5 + [1] * 3
    assert [image.prompt for image in images.images if image.prompt] == ["ohwx cat asleep"]
    assert len({image.name for image in images.images}) == 8
    assert validation.accepted[0] == "photos/0.png"
    assert validation.accepted[-1] == "others/4.png"
    assert [(f.file, f.check) for f in validation.findings] == [("others/.", "too few")]
    alone, _ = collect(file_store, two_subjects.model_copy(update={"more_subjects": ()}))
    assert images.images[:5] == alone.images
    assert images.digest != alone.digest


def test_a_photo_of_both_subjects_is_stored_for_each(two_subjects, file_store):
    images, _ = collect(file_store, two_subjects)
    digests = [image.blob.sha256 for image in images.images]
    twice = [image for image in images.images if digests.count(image.blob.sha256) == 2]
    assert [image.subject for image in twice] == [0, 1]


def test_one_refused_subject_refuses_all(two_subjects, file_store):
    (two_subjects.more_subjects[0].images / "bad.png").write_text("hello")
    with pytest.raises(DatasetRefused, match=r"others/bad\.png"):
        collect(file_store, two_subjects)
    assert list(file_store.keys("")) == []


def test_with_buckets_the_aspect_limit_is_theirs(folder):
    photograph(7, (330, 160)).save(folder / "wide.png")
    assert found(folder, Dataset(buckets=True, bucket_ratio=2.5)) == set()
    assert found(folder, Dataset(buckets=True, bucket_ratio=1.5)) == {
        ("soft", "wide.png", "aspect")
    }


DEFAULT = Path(__file__).parents[4] / "shared" / "dreambench"
REAL = Path(os.environ.get("DREAMBENCH_DIR", DEFAULT))


@pytest.mark.skipif(not REAL.is_dir(), reason="set DREAMBENCH_DIR to a folder of real subjects")
def test_real_photos_have_no_findings():
    for subject in sorted(path for path in REAL.iterdir() if path.is_dir()):
        assert validate(subject, RULES, 512).findings == (), subject.name
