"""Lines for people, also when there are none left to read them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SPEAKER = """
import sys
from pathlib import Path
from dreambooth_core import console
if sys.argv[2] == "unheard":
    console.go_on_unheard()
    console.go_on_unheard()
console.say("first")
sys.stdin.readline()
for _ in range(3):
    console.say("x" * 100_000)
    print("y" * 100_000, flush=True)
Path(sys.argv[1]).write_text("done")
"""


@pytest.mark.parametrize("way", ["unheard", "plain"])
def test_who_prints_outlives_who_reads(tmp_path: Path, way: str) -> None:
    done = tmp_path / "done"
    with subprocess.Popen(
        [sys.executable, "-c", SPEAKER, str(done), way],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as speaker:
        assert speaker.stdin is not None
        assert speaker.stdout is not None
        assert speaker.stderr is not None
        assert speaker.stderr.readline() == "first\n"
        speaker.stdout.close()
        speaker.stderr.close()
        if way == "unheard":
            _wait_for_silence(speaker.pid)
        speaker.stdin.write("\n")
        speaker.stdin.flush()
        status = speaker.wait(60)
    assert (status == 0, done.exists()) == (way == "unheard", way == "unheard")


def _wait_for_silence(pid: int) -> None:
    deadline = time.monotonic() + 30
    while {os.readlink(f"/proc/{pid}/fd/{number}") for number in (1, 2)} != {os.devnull}:
        assert time.monotonic() < deadline
        time.sleep(0.01)
