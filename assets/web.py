"""The Dagster web page over the lake, and the lake's own pages beside it: `python -m assets.web --port 3000`.

Ctrl-C stops it, and all it started. Pages are served where K25_PAGES_URL says, if that is on this machine.
"""

import argparse
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from assets.instance import add_datasets, open_instance
from assets.resources import REPOSITORY, dagster_home, lake_from_env, pages_url_from_env
from k25_pipelines.errors import K25Error

LOCAL = ("127.0.0.1", "localhost")


def main(arguments: list[str] | None = None) -> int:
    """Prepare the instance, close the runs of killed processes, and serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m assets.web", description="Serve the web page.")
    parser.add_argument("--port", type=int, default=3000)
    parser.add_argument("--host", default="127.0.0.1", help="the page has no login: keep it on this machine")
    options = parser.parse_args(arguments)
    with open_instance(dagster_home()) as instance:
        add_datasets(instance, lake_from_env().open())
    sys.stdout.write(f"web page: http://{options.host}:{options.port}   (Ctrl-C stops it)\n")
    sys.stdout.flush()
    with lake_pages():
        return serve(options.host, options.port)


@contextmanager
def lake_pages() -> Iterator[None]:
    """Serve the lake's pages meanwhile; where another serves them, or nobody can, say so and go on."""
    url = pages_url_from_env()
    where = urlsplit(url)
    if where.hostname not in LOCAL:
        sys.stdout.write(f"pages:    {url}   (K25_PAGES_URL: served elsewhere, by `k25 pages`)\n")
        yield
        return
    from k25_pipelines.gallery.serving import PageServer

    try:
        server = PageServer(lake_from_env().open(), port=where.port or 80)
    except K25Error as error:
        sys.stderr.write(f"k25 ui: {error} in K25_PAGES_URL; until then links to pages lead elsewhere\n")
        yield
        return
    sys.stdout.write(f"pages:    {url}\n")
    sys.stdout.flush()
    try:
        yield
    finally:
        server.close()


def serve(host: str, port: int) -> int:
    """Run web server, daemon and code server until they end or this process is told to stop."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job starts with an ignored SIGINT
        signal.signal(number, signal.default_int_handler)
    words = ["dev", "-w", str(REPOSITORY / "workspace.yaml"), "-h", host, "-p", str(port)]
    command = [sys.executable, "-W", "ignore", "-m", "dagster", *words]
    process = subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True, preexec_fn=_listen_to_interrupts)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        return 0


def _listen_to_interrupts() -> None:
    """Undo the ignored SIGINT that a shell gives its background jobs: `dagster dev` stops its children by it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
