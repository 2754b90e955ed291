"""A real Postgres for a test: Debian's or a wheel's server over a temporary folder, on a free port."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def server_folder() -> Path | None:
    """Return where initdb and postgres are, None where there is none."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]
    return next((place for place in places if (place / "initdb").exists()), None)


@contextmanager
def served(folder: Path) -> Iterator[dict[str, str]]:
    """Serve a new database below `folder`, and yield the environment that names it."""
    binaries = server_folder()
    assert binaries, "no Postgres"
    user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name  # the server refuses root
    data = folder / "data"
    data.mkdir(mode=0o700)
    (folder / "password").write_text("secret")
    if os.getuid() == 0:
        for parent in (folder, *folder.parents):
            if parent == Path("/tmp"):
                break
            parent.chmod(0o755)
        for path in (data, folder / "password", folder):
            shutil.chown(path, user)
    as_user = {"user": user} if os.getuid() == 0 else {}
    words = ["-D", str(data), "-U", "k25", "--pwfile", str(folder / "password"), "-A", "scram-sha-256", "--no-sync"]
    subprocess.run([str(binaries / "initdb"), *words], check=True, capture_output=True, cwd=folder, **as_user)
    port = free_port()
    settings = ["-c", "fsync=off", "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"]
    command = [str(binaries / "postgres"), "-D", str(data), "-p", str(port), *settings]
    with (folder / "postgres.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **as_user)
    try:
        _wait_until_it_answers(port)
        yield {
            "K25_PG_HOST": "127.0.0.1",
            "K25_PG_PORT": str(port),
            "K25_PG_USER": "k25",
            "K25_PG_PASSWORD": "secret",
            "K25_PG_DATABASE": "postgres",
        }
    finally:
        process.terminate()
        process.wait(timeout=20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_it_answers(port: int, seconds: float = 30) -> None:
    import psycopg2

    deadline = time.monotonic() + seconds
    while True:
        try:
            psycopg2.connect(host="127.0.0.1", port=port, user="k25", password="secret", dbname="postgres").close()
            return
        except psycopg2.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


if __name__ == "__main__":  # by hand: python -m tests.infra.postgres FOLDER
    place = Path(sys.argv[1])
    place.mkdir(parents=True, exist_ok=True)
    with served(place) as found:
        (place / "env").write_text("".join(f"export {name}={value}\n" for name, value in found.items()))
        time.sleep(float(sys.argv[2]))
