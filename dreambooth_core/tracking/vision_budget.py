"""Spending of a run on vision-language models, recorded in the store.

`vision.budget` thereby holds for all processes of a run and for its restarts. The record is
`spending/<name>-<digest of the config>.json`, changed by compare-and-swap. A request is recorded at its
upper bound before it is sent, and corrected by the response's token counts; the reservation of a process
that was killed meanwhile stays.
"""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import Field, ValidationError

from dreambooth_core.config import Config
from dreambooth_core.digests import canonical, digest_json
from dreambooth_core.errors import NotFound, StorageError
from dreambooth_core.storage.records import PRIVATE, Record
from dreambooth_core.storage.stores import Store, open_store
from dreambooth_core.vision.language import spending

LONGEST_PAUSE = 0.05
"""Seconds, random, between two attempts to change the record."""


class Spending(Record):
    """Spending of a run per account, in the prices' currency."""

    accounts: dict[str, float] = Field(default_factory=dict)


class StoredLedger:
    """A `spending.Ledger` in the store; its methods raise `StorageError`."""

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key

    def add(self, name: str, amount: float, limit: float | None) -> bool:
        """See `spending.Ledger`; atomic among processes and machines."""
        while True:
            accounts, tag = self._read()
            total = accounts.get(name, 0.0) + amount
            if limit is not None and total > limit:
                return False
            changed = Spending(accounts={**accounts, name: total})
            if self._store.put_if(self._key, canonical(changed), tag):
                return True
            time.sleep(random.uniform(0, LONGEST_PAUSE))

    def spent(self, name: str) -> float:
        """See `spending.Ledger`."""
        return self._read()[0].get(name, 0.0)

    def close(self) -> None:
        """Set all accounts to zero; roles of runs have no right to delete."""
        self._store.put(self._key, canonical(Spending()))

    def _read(self) -> tuple[dict[str, float], str | None]:
        """Accounts and the record's version tag; None without a record."""
        try:
            data, tag = self._store.get_tagged(self._key)
            return Spending.model_validate_json(data).accounts, tag
        except NotFound:
            return {}, None
        except ValidationError as error:
            raise StorageError(
                f"{self._key} in {self._store.uri} is no valid record of spending: delete it, and run again"
            ) from error


@contextmanager
def run_budget(config: Config) -> Iterator[None]:
    """Count the requests of the block towards the budget of this config's run.

    A run that ends without an error closes its account; after any other end the next run of the same
    config continues it. Inside another `run_budget`, and without a budget, nothing changes.
    """
    judge = config.judge
    limited = config.vision.budget is not None or (judge is not None and judge.budget is not None)
    if not limited or spending.is_recorded():
        yield
        return
    ledger = StoredLedger(open_store(config.storage), key_of(config))
    with spending.recorded_in(ledger):
        yield
    ledger.close()


def key_of(config: Config) -> str:
    """Key of a run's record: that of the same config with another budget, on every machine."""
    options = config.model_dump(mode="json", exclude=PRIVATE)
    for section in (options["vision"], options["evaluation"]["judge"] or {}):
        section.pop("budget", None)
    return f"spending/{config.name}-{digest_json(options)[:16]}.json"
