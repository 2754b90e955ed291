"""How runs share the machine and the store, and what is tried again: pools, and retries of the store alone."""

import functools
from collections.abc import Callable
from typing import Any

import dagster as dg

from k25_pipelines.errors import ObjectExistsError, ObjectNotFoundError, StoreError

GPU = "gpu"
"""Pool of the assets that train or evaluate: as many at a time as there are sets of devices."""
STORE = "store"
"""Pool of the assets that read much of the store."""
STORE_RETRIES = 4
FIRST_WAIT_SECONDS = 30.0
LAST_WAIT_SECONDS = 600.0
FINAL = (ObjectNotFoundError, ObjectExistsError)
"""Errors of the store that another attempt meets again."""


def retry_the_store(make: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an asset's function so that an unreachable store is tried again later, and bad data never is.

    The store's own retries last seconds (`storage/`); these last through an outage: 30 s, then twice as long each
    time. Whatever else goes wrong ends the run at once, with the error's own words.

    Args:
        make: takes the asset's context first.
    """

    @functools.wraps(make)
    def patient(context: dg.AssetExecutionContext, *args: Any, **kwargs: Any) -> Any:
        try:
            return make(context, *args, **kwargs)
        except FINAL:
            raise
        except StoreError as error:
            seconds = wait_seconds(context.retry_number)
            context.log.warning(f"the store failed: {error}; again in {seconds:.0f} s, at most {STORE_RETRIES} times")
            raise dg.RetryRequested(max_retries=STORE_RETRIES, seconds_to_wait=seconds) from error

    return patient


def wait_seconds(num_retries: int) -> float:
    """Return how long to wait before the next attempt, after so many retries [s]."""
    return min(LAST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2**num_retries)
