"""Words that code, docs and messages do not use: the field's own terms are in docs/glossary.md."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
RIDDLES = (
    *("whoever", "whichever", "whomever", "somebody", "somewhere", "darkroom", "court", "keeper"),
    *(
        "stranger",
        "strangers",
        "finder",
        "finders",
        "looker",
        "painter",
        "painters",
        "crew",
        "crews",
    ),
    *("dossier", "dossiers", "suspicion", "suspicions", "tally", "ancestry", "wishes", "hiccup"),
    *("told",),
)
IN_CODE = (
    *("Keeper", "Looker", "Painter", "Crew", "Court", "Wish", "Dossier", "Walks", "Supply", "Told"),
    *("Contender", "Darkroom", "Finder", "Kinship", "Ancestry", "Standing", "Tally", "Shot"),
    *("prompt_floor", "find_masks", "huber_border", "times_shift"),
)
"""Class names and config keys that were renamed."""
ALLOWED = {
    "dreambooth_core/config/old_keys.py": "the old keys",
    "examples/small_world/check_detector.py": "seeds the renders of the check",
    "examples/small_world/train_detector.py": "seeds the renders of the training",
    "examples/small_world/detector/training.json": "a recorded training",
    "tests/dreambooth_core/config/test_old_keys.py": "the old keys",
    "tests/examples/small_world/test_metrics.py": "seeds the renders",
    "tests/test_words.py": "the list",
    "CHANGELOG.md": "names of earlier versions",
}
"""File -> why it may use them."""
SUFFIXES = (".py", ".md", ".yaml", ".yml", ".j2", ".js", ".sh", ".toml", ".json", ".html")


def files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [name for name in listed if name.endswith(SUFFIXES) and name not in ALLOWED]


def hits(pattern: re.Pattern[str], names: list[str]) -> list[str]:
    found = []
    for name in names:
        text = (ROOT / name).read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), 1):
            if match := pattern.search(line):
                found.append(f"{name}:{number}: {match[0]}")
    return found


def test_words_without_a_technical_meaning_are_not_used() -> None:
    assert hits(re.compile(rf"\b({'|'.join(RIDDLES)})\b", re.IGNORECASE), files()) == []


def test_renamed_classes_and_keys_are_gone() -> None:
    code = [name for name in files() if name.endswith((".py", ".yaml", ".md"))]
    assert hits(re.compile(rf"\b({'|'.join(IN_CODE)})\b"), code) == []


def test_a_word_is_found_wherever_it_stands(tmp_path: Path) -> None:
    (tmp_path / "note.md").write_text("one\nWhoever reads this\n", encoding="utf-8")
    pattern = re.compile(r"\bwhoever\b", re.IGNORECASE)
    assert hits(pattern, [str(tmp_path / "note.md")]) == [f"{tmp_path / 'note.md'}:2: Whoever"]
