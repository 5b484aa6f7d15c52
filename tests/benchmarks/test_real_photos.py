"""Measurements on real photos, and the page with their table."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks import real_photos

DEFAULT_FOLDER = Path(__file__).parents[3] / "shared" / "dreambench"
FOLDER = Path(os.environ.get("DREAMBENCH_DIR", DEFAULT_FOLDER))
"""Photos laid out like google/dreambooth."""


def test_the_page_has_the_recorded_table():
    recorded = json.loads(real_photos.RESULT.read_text(encoding="utf-8"))
    page = real_photos.PAGE.read_text(encoding="utf-8")
    assert real_photos.written(page, real_photos.table(recorded)) == page


def test_top1_leaves_the_query_out_and_counts_missing_rows_as_wrong():
    rows = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [np.nan, np.nan]])
    owners = np.array([0, 0, 1, 1])
    assert real_photos.top1(rows, rows, owners) == 0.5
    assert real_photos.top1(rows, rows, np.array([0, 1, 2, 3])) == 0


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER.is_dir(), reason="no photos at DREAMBENCH_DIR")
def test_crops_identify_real_subjects_on_any_surroundings():
    found = real_photos.measure(real_photos.read(FOLDER))
    top1 = found["top1"]
    assert found["masks"] == found["photos"]
    assert top1["crop"] >= 0.95
    assert top1["crop, surroundings swapped"] >= 0.95
    assert top1["crop, surroundings swapped"] >= top1["crop"] - 0.02
    assert top1["whole photo, surroundings swapped"] <= top1["whole photo"] - 0.05
    assert top1["surroundings"] <= top1["crop"] - 0.1
    assert not any(found["sanity_warnings"].values())
    for row in found["class_nouns"].values():
        assert row["shown"] is None or row["noun"] == "can" or row["shown"] >= row["photos"] / 2
