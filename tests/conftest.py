"""Real parts for tests: an S3 server over HTTP, a lake in it, `k25` as a process."""

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory) -> Iterator[dict[str, str]]:
    """The environment of an embedded S3 server that runs for the whole session."""
    from infra.s3_server import start, stop

    folder = tmp_path_factory.mktemp("s3")
    info = start(folder)
    yield info.environment
    stop(folder)


@pytest.fixture
def s3_environment(s3_server, monkeypatch) -> dict[str, str]:
    """The server's variables, in this process too, with a lake (a prefix of the bucket) of the test's own."""
    variables = {**s3_server, "K25_LAKE": f"{s3_server['K25_LAKE']}/{uuid.uuid4().hex[:12]}"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


@pytest.fixture
def k25() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `k25` as a user does and return what came out; the lake is that of the environment."""

    def run(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "k25_pipelines", *map(str, words)],
            cwd=ROOT,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run
