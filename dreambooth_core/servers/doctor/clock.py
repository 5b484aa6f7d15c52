"""This machine's clock against the S3 server's, which checks the time of signatures."""

import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

from dreambooth_core.errors import DreamBoothError, one_line
from dreambooth_core.servers.doctor import NO_SERVER, CheckResult, CheckTarget
from dreambooth_core.servers.stack.http import ask
from dreambooth_core.storage.stores.s3 import endpoint_url

WARNING, BROKEN = 5.0, 60.0
"""Seconds; S3 refuses signatures that are 900 s off."""


def check(target: CheckTarget) -> Iterator[CheckResult]:
    """One result, accurate to a second or the duration of the request."""
    if target.storage is None:
        yield CheckResult(check="clock", level="skipped", sentence=NO_SERVER)
        return
    try:
        url = endpoint_url(target.storage) or "https://s3.amazonaws.com"
    except DreamBoothError as error:
        yield CheckResult(check="clock", level="broken", sentence=one_line(error))
        return
    before = time.time()
    answer = ask(url)
    now = (before + time.time()) / 2
    date = answer.headers.get("Date") if answer else None
    if date is None:
        sentence = f"{url} sends no time: see the check `storage`"
        yield CheckResult(check="clock", level="skipped", sentence=sentence)
        return
    yield _compared(url, now - parsedate_to_datetime(date).timestamp())


def _compared(url: str, ahead: float) -> CheckResult:
    difference = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} {url}"
    if abs(ahead) <= WARNING:
        sentence = f"at most {WARNING:.0f} s off that of {url}"
        return CheckResult(check="clock", level="ok", sentence=sentence)
    sentence = f"this machine's clock is {difference}: synchronize both by NTP"
    level = "broken" if abs(ahead) > BROKEN else "warning"
    return CheckResult.model_validate({"check": "clock", "level": level, "sentence": sentence})
