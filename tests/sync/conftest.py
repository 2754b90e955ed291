"""Two real S3 servers: the embedded one, which holds the lake and its data, and moto's, to which copies go."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from k25_pipelines.catalog.manifest import Manifest
from k25_pipelines.storage.store import Store, open_store
from k25_pipelines.sync import Job, look, open_with, read_access
from tests.storage.conftest import ACCESS_KEY, SECRET_KEY, moto_endpoint

__all__ = ["moto_endpoint"]


@dataclass(frozen=True, kw_only=True)
class Two:
    """A lake, and a place on another server."""

    lake: Store
    there: Store
    """Where copies go."""
    access_file: Path
    """With which the other server is used."""

    def job(self, source: str | Manifest | None = None, **how) -> Job:
        access = read_access(None, os.environ), read_access(str(self.access_file), {})
        return look(self.lake, source or f"{self.lake.url}/raw", self.there.url, access=access, **how)

    def copies(self) -> dict[str, bytes]:
        return {info.key: self.there.get(info.key) for info in self.there.list()}


@pytest.fixture
def two(s3_environment, moto_endpoint, tmp_path) -> Two:
    access_file = tmp_path / "mirror.env"
    access_file.write_text(
        f"export AWS_ACCESS_KEY_ID={ACCESS_KEY}\nexport AWS_SECRET_ACCESS_KEY='{SECRET_KEY}'\n"
        f"export AWS_ENDPOINT_URL={moto_endpoint}\nexport AWS_DEFAULT_REGION=us-east-1\n"
    )
    there = open_with(f"s3://lake/{uuid4().hex}", read_access(str(access_file), {}))
    return Two(lake=open_store(s3_environment["K25_LAKE"]), there=there, access_file=access_file)


@pytest.fixture
def fill(two) -> Callable[..., dict[str, bytes]]:
    """Put objects below `raw/` of the lake and return their bytes by key."""

    def put(**objects: int) -> dict[str, bytes]:
        made = {f"{name}.bin": os.urandom(size) for name, size in objects.items()}
        for key, data in made.items():
            two.lake.put(f"raw/{key}", data)
        return made

    return put
