"""Dagster with 100,000 partitions and 1,000 registered datasets: how long definitions and pages take to load.

Run: python -m benchmarks.dagster_scale   (starts an S3 server and the web page; writes results/dagster_scale.json)

The instance is the embedded one (SQLite), with every partition materialised whose dataset is registered. A page counts
as loaded when the words that are asked for stand in it, seen by a headless Chromium with an empty cache. Beside the
large instance stands a small one of ten datasets, under the same load of the machine,
which is told (processes that want a core, on average over a minute).
"""

import argparse
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import psutil
from playwright.sync_api import Page, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError

from assets.instance import open_instance, prepare_home
from assets.partitions import PARTITION_SET
from benchmarks.report import keep
from k25_pipelines.catalog.registration import Registration
from k25_pipelines.catalog.registry import register
from k25_pipelines.storage.store import Store, open_store

SIZES = {"10 datasets, 10 partitions": (10, 10), "1,000 datasets, 100,000 partitions": (1000, 100_000)}
PAGES = {
    "asset graph": ("/asset-groups", "data_layer"),
    "catalog": ("/assets", "dataset_manifest"),
    "asset, overview": ("/assets/dataset_manifest?view=overview", "Latest materialization"),
    "asset, partitions": ("/assets/dataset_manifest?view=partitions", "Partitions Selected"),
    "runs": ("/runs", "Created at"),
    "automation": ("/automation", "registered_datasets"),
}
"""Address, and the words that show that it is there."""
DIALOG = "Materialize, all partitions chosen"
NUM_STEPS, ROUNDS = 40, 3
LONGEST = 60.0
"""A page that is not there by then is told to take as long [s]."""
CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
LOADED = """
import sys, time
started, busy = time.perf_counter(), time.process_time()
import assets.definitions
print(time.perf_counter() - started, time.process_time() - busy, "torch" in sys.modules)
"""


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each page")
    options = parser.parse_args()
    from infra.s3_server import start, stop

    told: dict[str, dict] = {"definitions": definitions_load()}
    print(json.dumps(told), flush=True)
    for name, (datasets, partitions) in SIZES.items():
        with tempfile.TemporaryDirectory(prefix="k25-scale") as folder:
            server = start(Path(folder) / "lake")
            os.environ.update({**server.environment, "DAGSTER_HOME": str(prepare_home(Path(folder) / "dagster"))})
            try:
                told[name] = measured(open_store(server.environment["K25_LAKE"]), datasets, partitions, options)
            finally:
                stop(Path(folder) / "lake")
        print(name, json.dumps(told[name], indent=1), flush=True)
    print(keep("dagster_scale", told, command="python -m benchmarks.dagster_scale"))


def definitions_load() -> dict:
    """Return how long a fresh process takes to load the definitions."""
    rounds = [
        subprocess.run([sys.executable, "-c", LOADED], check=True, capture_output=True, text=True).stdout.split()
        for _ in range(2 * ROUNDS)
    ]
    assert {is_loaded for _, _, is_loaded in rounds} == {"False"}, "torch was loaded"
    wall, busy = ([float(each[place]) for each in rounds] for place in (0, 1))
    return {
        "s": statistics.median(wall),
        "cpu_s": statistics.median(busy),
        "rounds_s": wall,
        "torch": False,
        "load_of_machine": os.getloadavg()[0],
    }


def measured(lake: Store, datasets: int, partitions: int, options: argparse.Namespace) -> dict:
    """Return the figures of an instance of that size."""
    names = [f"dataset_{number:06}" for number in range(partitions)]
    for name in names[:datasets]:
        register(lake, Registration(name=name, uri=f"{lake.url}/raw/{name}", kind="text", licence="MIT", source="made"))
        version = {"number": 1, "digest": "0" * 32, "parent": None, "num_lines": 1, "num_quarantined": 0}
        lake.put(f"k25/datasets/{name}/versions/000001.json", json.dumps(version).encode())
    with open_instance(Path(os.environ["DAGSTER_HOME"])) as instance:
        started = time.perf_counter()
        for first in range(0, partitions, 10_000):
            instance.add_dynamic_partitions(PARTITION_SET, names[first : first + 10_000])
        told: dict = {"adding_partitions_s": time.perf_counter() - started}
        for name in names[:datasets]:
            instance.report_runless_asset_event(dg.AssetMaterialization("dataset_manifest", partition=name))
        told["sensor_tick_s"] = sensor_tick(instance)
        told["step"] = step_overhead(instance)
    return told | pages(options, few=partitions < 100)


def sensor_tick(instance: dg.DagsterInstance) -> float:
    """Return how long the sensor of new datasets takes to find that there is none."""
    from assets.definitions import defs
    from assets.resources import lake_from_env

    sensor = defs.get_sensor_def("registered_datasets")
    started = time.perf_counter()
    sensor.evaluate_tick(dg.build_sensor_context(instance, resources={"lake": lake_from_env()}))
    return time.perf_counter() - started


def step_overhead(instance: dg.DagsterInstance) -> dict:
    """Return what a step costs that does nothing, in the process of its run."""

    def chain(number: int) -> list[dg.AssetsDefinition]:
        made: list[dg.AssetsDefinition] = []
        for place in range(number):

            @dg.asset(name=f"nothing_{place}", deps=made[-1:])
            def nothing() -> dg.MaterializeResult:
                return dg.MaterializeResult(data_version=dg.DataVersion("1"))

            made.append(nothing)
        return made

    def run_of(number: int) -> tuple[float, float]:
        started, busy = time.perf_counter(), time.process_time()
        assert dg.materialize(chain(number), instance=instance).success
        return time.perf_counter() - started, time.process_time() - busy

    few, many = [run_of(1) for _ in range(ROUNDS)], [run_of(1 + NUM_STEPS) for _ in range(ROUNDS)]
    wall, busy = (
        statistics.median((m[place] - f[place]) / NUM_STEPS for f, m in zip(few, many, strict=True)) for place in (0, 1)
    )
    return {"s": wall, "cpu_s": busy, "run_of_one_s": statistics.median(f[0] for f in few)}


def pages(options: argparse.Namespace, *, few: bool) -> dict:
    """Start the web page as `make ui` does, and return when it is usable and how long its pages take."""
    port = free_port()
    started = time.perf_counter()
    command = [sys.executable, "-m", "k25_pipelines", "ui", "--port", str(port)]
    log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(port, process)
        answered = time.perf_counter() - started
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=options.chromium, args=CHROMIUM)
            page = browser.new_page(viewport={"width": 1500, "height": 900})
            load(page, port, "asset graph", timeout=180)
            usable, busy = time.perf_counter() - started, busy_seconds(process.pid)
            browser.close()
            found: dict[str, list[float]] = {}
            for _ in range(ROUNDS):
                browser = play.chromium.launch(executable_path=options.chromium, args=CHROMIUM)
                page = browser.new_page(viewport={"width": 1500, "height": 900})
                for name in PAGES:
                    found.setdefault(name, []).append(at_most(LONGEST, load, page, port, name))
                    picture(page, options, name, few)
                found.setdefault(DIALOG, []).append(at_most(LONGEST, dialog, page, port))
                picture(page, options, "dialog", few)
                browser.close()
        seconds = {name: {"s": statistics.median(each), "rounds_s": each} for name, each in found.items()}
        return {
            "load_of_machine": os.getloadavg()[0],
            "ui_answers_s": answered,
            "ui_usable_s": usable,
            "ui_cpu_s": busy,
            "pages": seconds,
        }
    finally:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def at_most(seconds: float, action: Callable[..., float], *arguments: object) -> float:
    """Return what an action took, or the longest that is waited for anything where it did not end."""
    try:
        return action(*arguments)
    except PlaywrightTimeoutError:
        return seconds


def load(page: Page, port: int, name: str, *, timeout: float = LONGEST) -> float:
    """Return how long a page takes until its words stand there [s]."""
    path, words = PAGES[name]
    started = time.perf_counter()
    page.goto(f"http://127.0.0.1:{port}{path}", wait_until="commit", timeout=timeout * 1000)
    page.get_by_text(words).first.wait_for(timeout=timeout * 1000)
    page.get_by_text("Loading").first.wait_for(state="hidden", timeout=timeout * 1000)
    return time.perf_counter() - started


def dialog(page: Page, port: int) -> float:
    """Return how long it takes from the click on Materialize until all partitions are chosen [s]."""
    load(page, port, "asset, overview")
    button = page.get_by_role("button", name="Materialize").first
    button.wait_for(timeout=LONGEST * 1000)
    started = time.perf_counter()
    button.click()
    page.get_by_text("Launch runs to materialize").first.wait_for(timeout=LONGEST * 1000)
    page.get_by_role("button", name="All", exact=True).first.click(timeout=LONGEST * 1000)
    chosen = page.get_by_text(re.compile(r"^[1-9][0-9,]* partitions$")).filter(visible=True)
    chosen.first.wait_for(timeout=LONGEST * 1000)
    return time.perf_counter() - started


def picture(page: Page, options: argparse.Namespace, name: str, few: bool) -> None:
    """Keep a picture of the page, if pictures are wanted."""
    if options.pictures:
        page.screenshot(path=options.pictures / f"{'small' if few else 'large'}-{name.replace(', ', '-')}.png")


def wait_for(port: int, process: subprocess.Popen) -> None:
    """Wait until the port answers. Raises RuntimeError: the server ended."""
    while True:
        if process.poll() is not None:
            raise RuntimeError(f"the web page ended with {process.returncode}")
        try:
            with socket.create_connection(("127.0.0.1", port), 1):
                return
        except OSError:
            time.sleep(0.1)


def busy_seconds(pid: int) -> float:
    """Return the CPU time of a process and of those that it started and that live [s]."""
    root = psutil.Process(pid)
    times = [each.cpu_times() for each in (root, *root.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


if __name__ == "__main__":
    main()
