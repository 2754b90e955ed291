"""The embedded S3 server starts, is found again, survives what a killed run leaves, and stops."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import botocore.config
import psutil
import pytest

from infra import s3_server, s3_state
from infra.s3_signature import list_buckets_status
from k25_pipelines.errors import StoreError

ROOT = Path(__file__).resolve().parents[2]
CHECKSUMS = botocore.config.Config(
    request_checksum_calculation="when_required", response_checksum_validation="when_required"
)


@pytest.fixture
def state(tmp_path):
    yield tmp_path / "state"
    s3_server.stop(tmp_path / "state")


def client(server):
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=server.environment["AWS_SECRET_ACCESS_KEY"],
        region_name=server.environment["AWS_DEFAULT_REGION"],
        config=CHECKSUMS,
    )


def kill(pid):
    psutil.Process(pid).kill()
    psutil.Process(pid).wait(5)


def test_an_object_put_over_s3_is_read_back_and_lies_in_the_state_folder(state):
    server = s3_server.start(state)
    client(server).put_object(Bucket="lake", Key="raw/a b.txt", Body=b"hello")
    assert client(server).get_object(Bucket="lake", Key="raw/a b.txt")["Body"].read() == b"hello"
    assert (state / "s3" / "lake" / "raw" / "a b.txt").read_bytes() == b"hello"


def test_a_second_start_uses_the_server_that_runs(state):
    first = s3_server.start(state)
    second = s3_server.start(state)
    assert (second.endpoint, second.pid, second.is_new) == (first.endpoint, first.pid, False)
    with pytest.raises(StoreError, match=f"already runs at {first.endpoint}"):
        s3_server.start(state, port=1)


def test_a_killed_server_comes_back_with_its_credentials_port_and_objects(state):
    first = s3_server.start(state)
    client(first).put_object(Bucket="lake", Key="kept", Body=b"1")
    kill(first.pid)
    assert s3_server.status(state) is None
    second = s3_server.start(state)
    assert (second.environment, second.is_new) == (first.environment, True)
    assert client(second).get_object(Bucket="lake", Key="kept")["Body"].read() == b"1"


def test_a_process_file_that_names_another_program_harms_neither(state):
    state.mkdir()
    (state / "s3.pid").write_text(f'{{"pid": {os.getpid()}, "start_time": 1.0}}')
    assert s3_server.start(state).is_new
    (state / "s3.pid").write_text("not json")
    assert not s3_server.start(state).is_new, "found by what it serves, the file being damaged"


def test_a_server_whose_process_file_is_lost_is_used_and_can_be_stopped(state):
    first = s3_server.start(state)
    s3_state.forget_process(state)
    assert s3_server.start(state).pid == first.pid
    s3_state.forget_process(state)
    assert s3_server.stop(state)
    assert list_buckets_status(first.endpoint, "x" * 16, "y" * 32) is None


def test_a_port_that_was_taken_meanwhile_is_given_up(state):
    first = s3_server.start(state)
    port = int(first.endpoint.rsplit(":", 1)[1])
    s3_server.stop(state)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(StoreError, match=f"port {port} on 127.0.0.1 is taken"):
            s3_server.start(state, port=port)
        second = s3_server.start(state)
    assert second.endpoint != first.endpoint
    assert second.environment["AWS_SECRET_ACCESS_KEY"] == first.environment["AWS_SECRET_ACCESS_KEY"]


def test_wrong_credentials_are_refused_and_the_exports_are_private(state):
    server = s3_server.start(state)
    secret = server.environment["AWS_SECRET_ACCESS_KEY"]
    assert list_buckets_status(server.endpoint, server.environment["AWS_ACCESS_KEY_ID"], "z" * 32) == 403
    assert stat.S_IMODE((state / "env").stat().st_mode) == 0o600
    assert s3_state.read_environment(state) == server.environment
    assert secret not in " ".join(psutil.Process(server.pid).cmdline())


@pytest.fixture
def caller(state) -> Iterator[subprocess.Popen[str]]:
    """`up` in the foreground, ready; killed in the end, whatever a test found."""
    command = [sys.executable, "-m", "infra.s3_server", "up", "--state", str(state)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert "ready at http://127.0.0.1:" in process.stdout.readline()
            yield process
        finally:
            process.kill()


def answered(state) -> s3_server.ServerInfo:
    """The server's facts; a busy machine may let it answer late."""
    deadline = time.monotonic() + 30
    while (server := s3_server.status(state)) is None:
        assert time.monotonic() < deadline, "the server never answered"
        time.sleep(0.05)
    return server


def test_in_the_foreground_it_ends_with_its_signal(state, caller):
    server = answered(state)
    caller.send_signal(signal.SIGTERM)
    assert caller.wait(60) == 0
    gone, _ = psutil.wait_procs([psutil.Process(server.pid)] if psutil.pid_exists(server.pid) else [], timeout=30)
    assert gone or not psutil.pid_exists(server.pid)


def test_in_the_foreground_it_does_not_outlive_a_killed_caller(state, caller):
    answered(state)
    caller.kill()
    deadline = time.monotonic() + 30
    while s3_server.status(state) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert s3_server.status(state) is None


def test_the_command_line_says_what_it_did(state, capsys):
    words = ["--state", str(state)]
    assert s3_server.main(["status", *words]) == 1
    assert s3_server.main(["up", "--background", *words]) == 0
    assert s3_server.main(["status", "--json", *words]) == 0
    assert s3_server.main(["down", *words]) == 0
    assert s3_server.main(["down", *words]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["S3 server stopped", "no S3 server was running"]
