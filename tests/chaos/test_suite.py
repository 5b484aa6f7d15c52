"""The chaos suite's parts, and one of its cases."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth_core.storage.blobs import blob_key, put_blob
from dreambooth_core.storage.stores import Store
from tests.chaos import checks, clock, disk, report
from tests.chaos.__main__ import _exit_code, _resumed
from tests.chaos.cases import drawn
from tests.chaos.faults import FAULTS
from tests.chaos.report import Row
from tests.chaos.stages import STAGES
from tests.chaos.system import ROOT


def test_every_process_is_killed_in_every_stage() -> None:
    struck = {(case.fault.name, stage) for case in drawn(1) for stage in case.stages}
    killed = ("flow killed", "worker killed", "Prefect killed", "MLflow killed", "S3 killed")
    assert {(fault, stage) for fault in killed for stage in STAGES} <= struck
    assert {fault for fault, _ in struck} == {fault.name for fault in FAULTS}
    for case in drawn(1):
        assert list(case.stages) == sorted(case.stages, key=STAGES.index)


def test_cases_depend_on_the_seed_only() -> None:
    def moments(seed: int) -> list[tuple[str, tuple[str, ...], tuple[float, ...]]]:
        return [(case.name, case.stages, case.moments) for case in drawn(seed)]

    assert moments(1) == moments(1)
    assert moments(1) != moments(2)
    alone = [case.name for case in drawn(1, "cancelled")]
    assert alone == ["cancelled-1"]


GOOD = Row(fault="f", stage="train", outcome="one retry", weights_equal=True, case="f-1", seed=3)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, 0),
        ({"outcome": "not run", "weights_equal": None}, 75),
        ({"outcome": "skipped", "weights_equal": None}, 0),
        ({"outcome": "missed"}, 0),
        ({"outcome": "lost"}, 1),
        ({"outcome": "stuck"}, 1),
        ({"weights_equal": False}, 1),
        ({"weights_equal": None}, 1),
        ({"orphans": ("python -m module",)}, 1),
        ({"lost": ("blobs/sha256/ab",)}, 1),
    ],
)
def test_exit_code_for_rows(change: dict[str, object], status: int) -> None:
    assert _exit_code([GOOD, GOOD.model_copy(update=change)]) == status


def test_incomplete_report_is_resumed(tmp_path: Path) -> None:
    left = GOOD.model_copy(update={"outcome": "not run", "case": "g-1", "weights_equal": None})
    report.write(tmp_path / "chaos.json", [GOOD, left])
    earlier = report.read(tmp_path / "chaos.json")
    assert earlier == [GOOD, left]
    assert _resumed(earlier, None) == (3, [GOOD])
    assert _resumed(earlier, 3) == (3, [GOOD])
    assert _resumed(earlier, 4) == (4, [])
    assert _resumed([GOOD], 3) == (3, [])
    assert report.read(tmp_path / "nothing.json") == []
    assert report.table(earlier).splitlines()[2] == "| f | train | one retry | yes | 0 | 0 |"


def test_incomplete_objects_are_found(file_store: Store) -> None:
    whole = put_blob(file_store, b"whole")
    file_store.put("runs/1/result.json", b"{}")
    step, files = "runs/1/checkpoints/00000001", {"a": whole.model_dump()}
    file_store.put(f"{step}/manifest.json", json.dumps({"files": files}).encode())
    file_store.put(f"{step}/a", b"whole")
    file_store.put("mlflow/1/half.json", b"{")
    assert checks.incomplete(file_store) == []
    assert checks.kept(file_store) == {
        blob_key(whole),
        "runs/1/result.json",
        "mlflow/1/half.json",
    }
    file_store.put(f"{step}/a", b"whol")
    assert checks.incomplete(file_store) == [f"{step}/manifest.json"]
    file_store.delete(f"{step}/a")
    assert checks.incomplete(file_store) == [f"{step}/manifest.json"]
    file_store.put(blob_key(whole), b"whol")
    file_store.put("runs/1/result.json", b"{")
    assert checks.incomplete(file_store) == [
        blob_key(whole),
        f"{step}/manifest.json",
        "runs/1/result.json",
    ]


def test_clock_of_a_running_program_is_changed(tmp_path: Path) -> None:
    environment = clock.built(tmp_path)
    if not environment:
        pytest.skip("no C compiler")
    code = "import time\nprint(time.time(), flush=True)\ninput()\nprint(time.time())"
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code],
        env=dict(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        before = float(program.stdout.readline())
        clock.set_ahead(tmp_path / "clock", 3600)
        after = float(program.communicate("\n")[0])
    assert 3600 <= after - before < 3660


def test_disk_is_filled_and_freed(tmp_path: Path) -> None:
    folder = tmp_path / "work" / "run"
    problem = disk.make(folder)
    if problem:
        pytest.skip(problem)
    try:
        disk.fill(folder)
        with pytest.raises(OSError, match="No space") as full:
            (folder / "file").write_bytes(bytes(10_000))
        assert full.value.errno == errno.ENOSPC
        disk.free(folder)
        (folder / "file").write_bytes(bytes(10_000))
    finally:
        disk.unmount_below(folder.parent)
    assert not folder.is_mount()


@pytest.mark.servers
@pytest.mark.timeout(1200)
def test_real_case_of_a_killed_trainer(tmp_path: Path) -> None:
    out = tmp_path / "chaos.json"
    words = ["--only", "trainer", "--seed", "1", "--minutes", "15", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(out.read_text())
    assert [(row["stage"], row["outcome"], row["weights_equal"]) for row in rows] == [
        ("train", "one retry", True)
    ] * 2
