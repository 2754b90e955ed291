"""A real Dagster web page over a tiny lake, and a real browser that looks at it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]


@dataclass(frozen=True)
class Page:
    """The served page: its address and the environment that its processes have."""

    url: str
    environment: dict[str, str]

    def query(self, text: str, **variables: object) -> dict:
        """Return the answer to a GraphQL query."""
        body = json.dumps({"query": text, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())["data"]

    def newest_run(self) -> dict | None:
        """Return status and job of the newest run."""
        text = "{ runsOrError(limit: 1) { ... on Runs { results { runId status jobName assetSelection { path } } } } }"
        runs = self.query(text)["runsOrError"]["results"]
        return runs[0] if runs else None


@pytest.fixture(scope="module")
def dagster_page(tmp_path_factory) -> Iterator[Page]:
    """`k25 ui` on a free port, with an instance and a lake of its own; all of it is stopped in the end."""
    from tests.assets.tiny_lake import build

    folder = tmp_path_factory.mktemp("page")
    build(folder / "lake")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("K25_")},
        "K25_LAKE": str(folder / "lake"),
        "K25_WORK": str(folder / "work"),
        "K25_SCALE": "toy",
        "DAGSTER_HOME": str(folder / "dagster"),
    }
    port, pages_port = free_ports()
    environment["K25_PAGES_URL"] = f"http://127.0.0.1:{pages_port}"
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-m", "assets.web", "--port", str(port)]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}/server_info"
        wait_for(lambda: process.poll() is not None or answers(address), "the web page", seconds=120)
        assert process.poll() is None, (folder / "log").read_text()
        yield Page(f"http://127.0.0.1:{port}", environment)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=60)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """Headless Chromium; absent, the tests are skipped, unless K25_REQUIRE_BROWSER says that it must be there."""
    required = bool(os.environ.get("K25_REQUIRE_BROWSER"))
    if not CHROMIUM.exists() and not required:
        pytest.skip(f"no browser at {CHROMIUM}: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        launched = running.chromium.launch(executable_path=str(CHROMIUM), headless=True, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def tab(browser, request, tmp_path) -> Iterator[object]:
    """An empty tab; what it shows at the end of the test is kept in K25_SCREENSHOTS, or in the test's folder."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    yield page
    page.screenshot(path=str(screenshots(tmp_path) / f"{request.node.name}.png"))
    page.close()


def screenshots(otherwise: Path) -> Path:
    """Return the folder that pictures for the README go to."""
    folder = Path(os.environ.get("K25_SCREENSHOTS") or otherwise)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def free_ports() -> tuple[int, int]:
    """Return two ports that nobody listens on."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def answers(url: str) -> bool:
    """Return whether something serves `url`."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def wait_for(condition: Callable[[], object], what: str, *, seconds: float) -> None:
    """Wait until `condition()` is true; fail naming `what` after the time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not after {seconds:.0f} s"
        time.sleep(0.3)
