"""Who may use a store: a file of AWS_* exports or a profile's name in, an open store out. Secrets are never recorded.

Two stores of one command may want two accounts, and the standard variables name one.
"""

import os
import shlex
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from k25_pipelines.errors import StoreError
from k25_pipelines.storage.store import Store, open_store

NAMES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)
"""The standard variables that say who asks which S3."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """How a store is used."""

    told: str | None = None
    """The file or profile that was named; None: the environment. This alone is recorded."""
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Of NAMES, those that are set."""

    @property
    def endpoint(self) -> str:
        """The S3 that is asked; "" for AWS's own."""
        return self.variables.get("AWS_ENDPOINT_URL_S3") or self.variables.get("AWS_ENDPOINT_URL", "")

    @property
    def region(self) -> str:
        """Its region, as far as it is told."""
        return self.variables.get("AWS_REGION") or self.variables.get("AWS_DEFAULT_REGION", "")


def read_access(told: str | None, environment: Mapping[str, str]) -> Access:
    """Return the access that words name: a file of exports, as `k25 up` writes one, or else a profile of AWS's config.

    Args:
        told: file or profile; None for what the environment says.
        environment: the variables of this process.

    Raises:
        StoreError: the file names no access.
    """
    if told is None:
        return Access(variables={name: environment[name] for name in NAMES if environment.get(name)})
    path = Path(told)
    if not path.is_file():
        if "/" in told:
            raise StoreError(f"{told}: no such file of AWS_* exports; name one, or a profile of AWS's config")
        kept = {name: environment[name] for name in ("AWS_REGION", "AWS_DEFAULT_REGION") if environment.get(name)}
        return Access(told=told, variables={**kept, "AWS_PROFILE": told, **_profile(told, environment)})
    words = [line.removeprefix("export ").partition("=") for line in path.read_text().splitlines()]
    found = {name.strip(): "".join(shlex.split(value)) for name, _, value in words if name.strip() in NAMES}
    if not found:
        raise StoreError(f"{told} sets none of {', '.join(NAMES[:2])}; write lines such as: export {NAMES[0]}=...")
    return Access(told=str(path.resolve()), variables=found)


def _profile(name: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return endpoint and region that AWS's config tells of a profile: our stores are told by them, too."""
    config = ConfigParser(interpolation=None)
    config.read(Path(environment.get("AWS_CONFIG_FILE") or "~/.aws/config").expanduser())
    section = name if name == "default" else f"profile {name}"
    told = dict(config[section]) if config.has_section(section) else {}
    fields = {"AWS_ENDPOINT_URL": told.get("endpoint_url"), "AWS_DEFAULT_REGION": told.get("region")}
    return {variable: value for variable, value in fields.items() if value}


def open_with(url: str, access: Access) -> Store:
    """Return the store below `url`, used as `access` says. Raises StoreError, as `open_store` does."""
    with _in_place(access.variables):
        return open_store(url)


@contextmanager
def _in_place(variables: Mapping[str, str]) -> Iterator[None]:
    """Let a client that is made in the body find these variables in the place of the environment's own."""
    before = {name: os.environ.pop(name) for name in NAMES if name in os.environ}
    try:
        os.environ.update(variables)
        yield
    finally:
        for name in NAMES:
            os.environ.pop(name, None)
        os.environ.update(before)
