"""Output of a process whose stdout and stderr pipes are closed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import sys
from pathlib import Path
from dreambooth_core import console
if sys.argv[2] == "survives":
    console.survive_closed_output()
    console.survive_closed_output()
console.say("first")
sys.stdin.readline()
for _ in range(3):
    console.say("x" * 100_000)
    print("y" * 100_000, flush=True)
Path(sys.argv[1]).write_text("done")
"""


@pytest.mark.parametrize("mode", ["survives", "plain"])
def test_a_process_with_closed_output_goes_on_only_if_asked_to(tmp_path: Path, mode: str) -> None:
    done = tmp_path / "done"
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(done), mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.readline() == "first\n"
        process.stdout.close()
        process.stderr.close()
        if mode == "survives":
            _wait_for_redirection(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        status = process.wait(60)
    assert (status == 0, done.exists()) == (mode == "survives", mode == "survives")


def _wait_for_redirection(pid: int) -> None:
    deadline = time.monotonic() + 30
    while {os.readlink(f"/proc/{pid}/fd/{number}") for number in (1, 2)} != {os.devnull}:
        assert time.monotonic() < deadline
        time.sleep(0.01)
