"""The three backends, and two real S3 servers: rclone's, as embedded, and moto's, with conditional writes."""

import os
import socket
import subprocess
import time
from pathlib import Path
from uuid import uuid4

import pytest

from k25_pipelines.storage.store import Store, open_store

ACCESS_KEY, SECRET_KEY = "test-access-key", "test-secret-key"
RCLONE = Path(os.sys.executable).with_name("rclone")


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(port: int, seconds: float = 10) -> None:
    """Return when something listens on `port`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise TimeoutError(f"nothing listens on port {port}")


@pytest.fixture(scope="session")
def rclone_server(tmp_path_factory):
    """Endpoint of rclone's S3 server over a folder that has one bucket, `lake`."""
    folder = tmp_path_factory.mktemp("rclone")
    (folder / "lake").mkdir()
    port = free_port()
    command = [RCLONE, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", folder]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(port)
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait(timeout=10)


@pytest.fixture(scope="session")
def moto_endpoint():
    """Endpoint of moto's S3 server, in this process, with one bucket, `lake`."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    session = boto3.session.Session(ACCESS_KEY, SECRET_KEY, region_name="us-east-1")
    session.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="lake")
    yield f"http://{host}:{port}"
    server.stop()


def use_endpoint(monkeypatch, endpoint: str) -> None:
    """Configure S3 access by the standard variables."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def rclone_lake(monkeypatch, rclone_server) -> str:
    """URL of an empty prefix of rclone's bucket, with access configured."""
    use_endpoint(monkeypatch, rclone_server)
    return f"s3://lake/{uuid4().hex}"


@pytest.fixture
def moto_lake(monkeypatch, moto_endpoint) -> str:
    """URL of an empty prefix of moto's bucket, with access configured."""
    use_endpoint(monkeypatch, moto_endpoint)
    return f"s3://lake/{uuid4().hex}"


@pytest.fixture(params=["memory", "local", "rclone", "moto"])
def store(request, tmp_path) -> Store:
    """An empty store of each backend."""
    if request.param == "memory":
        return open_store(f"memory://{uuid4().hex}/below")
    if request.param == "local":
        return open_store(str(tmp_path / "lake"))
    return open_store(request.getfixturevalue(f"{request.param}_lake"))
