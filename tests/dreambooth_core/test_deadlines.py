import threading
import time

import pytest

from dreambooth_core import deadlines
from dreambooth_core.deadlines import within


def test_a_quick_call_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert within(30, lambda: 5, "asking") == 5
    with pytest.raises(KeyError, match="gone"):
        within(30, lambda: {}["gone"], "asking")
    assert capsys.readouterr().err == ""


def test_a_call_that_does_not_end_is_abandoned(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "SILENT_SECONDS", 0.05)
    event, started = threading.Event(), time.monotonic()
    with pytest.raises(TimeoutError, match="within 1 s"):
        within(1, event.wait, "asking http://x")
    assert 0.9 < time.monotonic() - started < 5
    assert capsys.readouterr().err == "asking http://x; up to 1 s\n"
    event.set()
