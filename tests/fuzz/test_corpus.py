"""The quick sample of fuzz cases on the real command line (all of them: `make fuzz`), and the checks."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz import corpus
from tests.fuzz.case import Case
from tests.fuzz.forks import Ended
from tests.fuzz.verdict import faults

CASES = corpus.quick()
LEAST = 600


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Case name -> result; all run by one forking process."""
    out = tmp_path_factory.mktemp("fuzz") / "results.json"
    command = [sys.executable, "-m", "tests.fuzz", "--quick", "--jobs", "1", "--patience", "2"]
    command += ["--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert out.is_file(), done.stderr[-2000:]
    return {result["name"]: result for result in json.loads(out.read_text())}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_command_ends_as_expected(
    case: Case, results: dict[str, dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    if case.known_defect:
        request.applymarker(pytest.mark.xfail(strict=True, reason=case.known_defect))
    result = results[case.name]
    assert result["faults"] == [], result["stderr"]


def test_corpus_is_large_and_the_quick_sample_covers_every_category() -> None:
    cases = corpus.everything()
    assert len(cases) >= LEAST
    assert {case.category for case in CASES} == {case.category for case in cases}


GOOD = Ended(2, 0, "", "Error: no config at x.yaml\n", 1.0, 10**8, [], [], False)
CASE = Case("test/x", ("run",), 2, contains=("x.yaml",), secret="hunter2")


def test_expected_end_has_no_faults() -> None:
    assert faults(CASE, GOOD) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"code": 4}, "exit code 4 instead of 2"),
        ({"code": None, "signal": 9}, "killed by signal 9"),
        ({"stderr": ""}, "0 sentences"),
        ({"stderr": "Error: no config at x.yaml\n" * 2}, "2 sentences"),
        ({"stderr": "Error: no config at x.yaml\nmore\n"}, "not the last line"),
        ({"stderr": f"Error: x.yaml {'x' * 600}\n"}, "a sentence of"),
        ({"stderr": "Traceback\nError: no config at x.yaml\n"}, "'Traceback'"),
        ({"stderr": "Error: KeyError: x.yaml (unexpected)\n"}, "'(unexpected'"),
        ({"stderr": "Error: no config at it\n"}, "lacks 'x.yaml'"),
        ({"stderr": "Error: x.yaml has hunter2\n"}, "echoes the secret"),
        ({"stderr": "Error: x.yaml \x1b[2J in it\n"}, "U+001B"),
        ({"stderr": "Error: x.yaml \u202e in it\n"}, "U+202E"),
        ({"stdout": "x" * 300_000}, "300,000 characters"),
        ({"memory": 2 * 2**30}, "2,048 MiB"),
        ({"changed": ["cwd/x.yaml"]}, "input changed"),
        ({"appeared": ["home/.cache"]}, "appeared outside"),
        ({"left_running": True}, "left running"),
    ],
)
def test_unexpected_end_is_a_fault(change: dict[str, Any], fault: str) -> None:
    assert fault in "; ".join(faults(CASE, GOOD._replace(**change)))
