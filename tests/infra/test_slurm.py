"""SIGTERM before Slurm's time limit, which `--signal=B:TERM` sends to the batch script only."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

RUN = 'trap "exit 75" TERM; : >"$1"; while :; do sleep 0.1; done'
"""A command that creates a file once it runs, and exits with 75 on SIGTERM."""
OURS = {
    "dreambooth": '[ "$1" = run ] && exec sh -c "$RUN" it "$2"',
    # starts the command as its child, and fails if `ray` is not on the PATH
    "ray": 'command -v ray || exit 127\nwhile [ "$1" != -- ]; do shift; done\nshift\n"$@"',
}
SLURM_S = {
    "srun": 'shift 2\n"$@"',
    "scontrol": '[ "$1" = show ] && echo one || echo "$@" >"$REQUEUED"',
}


@pytest.mark.parametrize("name", ["train", "ray"])
def test_stopped_run_is_requeued(infra: Path, tmp_path: Path, name: str) -> None:
    for folder, programs in (("ours", OURS), ("slurm", SLURM_S)):
        (tmp_path / folder).mkdir()
        for program, does in programs.items():
            (tmp_path / folder / program).write_text(f"#!/bin/sh\n{does}\n")
            (tmp_path / folder / program).chmod(0o755)
    script, ready = infra / f"slurm/{name}.sbatch", tmp_path / "ready"
    for line in ("--signal=B:TERM@90", "--requeue", "--open-mode=append"):
        assert f"#SBATCH {line}\n" in script.read_text()
    words = [str(ready)] if name == "train" else ["sh", "-c", RUN, "it", str(ready)]
    env = {
        "PATH": f"{tmp_path / 'slurm'}:/usr/bin:/bin",
        "TMPDIR": str(tmp_path),
        "RUN": RUN,
        "REQUEUED": str(tmp_path / "requeued"),
        "DREAMBOOTH_BIN": str(tmp_path / "ours/dreambooth"),
        "RAY_BIN": str(tmp_path / "ours/ray"),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "one",
        "SLURM_JOB_NUM_NODES": "1",
    }
    process = subprocess.Popen(["bash", script, *words], env=env, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not ready.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.terminate()
        assert process.wait(60) == 75
    finally:
        # and its remaining children
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
