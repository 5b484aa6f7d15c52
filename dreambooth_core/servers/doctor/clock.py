"""Our clock against the S3 server's: signatures carry the time, and so do leases."""

import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

from dreambooth_core.errors import DreamBoothError, one_line
from dreambooth_core.servers.doctor import NOTHING_UP, CheckResult, CheckTarget
from dreambooth_core.servers.stack.http import ask
from dreambooth_core.storage.stores.s3 import endpoint_url

NOTICEABLE, TOO_MUCH = 5.0, 60.0
"""Seconds; S3 refuses signatures that are 900 s off, long after leases have gone wrong."""


def check(site: CheckTarget) -> Iterator[CheckResult]:
    """One finding, to a second or the time that the question takes."""
    if site.storage is None:
        yield CheckResult(check="clock", level="skipped", sentence=NOTHING_UP)
        return
    try:
        url = endpoint_url(site.storage) or "https://s3.amazonaws.com"
    except DreamBoothError as error:
        yield CheckResult(check="clock", level="broken", sentence=one_line(error))
        return
    before = time.time()
    answer = ask(url)
    now = (before + time.time()) / 2
    told = answer.headers.get("Date") if answer else None
    if told is None:
        sentence = f"{url} tells no time: see the check `storage`"
        yield CheckResult(check="clock", level="skipped", sentence=sentence)
        return
    yield _judged(url, now - parsedate_to_datetime(told).timestamp())


def _judged(url: str, ahead: float) -> CheckResult:
    where = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} {url}"
    if abs(ahead) <= NOTICEABLE:
        sentence = f"at most {NOTICEABLE:.0f} s from that of {url}"
        return CheckResult(check="clock", level="ok", sentence=sentence)
    sentence = f"this machine's clock is {where}: let both take their time from NTP"
    level = "broken" if abs(ahead) > TOO_MUCH else "warning"
    return CheckResult.model_validate({"check": "clock", "level": level, "sentence": sentence})
