"""What a person sees and does on the web page, in a real browser."""

import subprocess
import sys

import pytest

from tests.web.conftest import ROOT, screenshots, wait_for

pytestmark = pytest.mark.web


def assert_shown(tab, words: str) -> None:
    """The words stand on the page, or come to within half a minute; else the browser's error ends the test."""
    shown = tab.get_by_text(words, exact=True).first
    shown.wait_for(timeout=30_000)
    assert shown.is_visible()


def test_the_page_shows_every_group_of_assets(dagster_page, tab):
    tab.goto(f"{dagster_page.url}/asset-groups", wait_until="domcontentloaded")
    for group in ("data_layer", "plans", "pretraining", "evaluation"):
        assert_shown(tab, group)


def test_a_group_shows_its_assets(dagster_page, tab):
    tab.goto(f"{dagster_page.url}/locations/k25/asset-groups/pretraining/lineage", wait_until="domcontentloaded")
    for asset in ("vit_checkpoint", "joint_checkpoint", "run_report"):  # longer names are cut where space is short
        assert_shown(tab, asset)


def test_the_schedule_and_the_sensor_are_listed(dagster_page, tab):
    tab.goto(f"{dagster_page.url}/automation", wait_until="domcontentloaded")
    for name in ("nightly_retraining", "registered_datasets"):
        assert_shown(tab, name)


def test_a_click_on_materialize_makes_the_asset(dagster_page, tab, tmp_path):
    tab.goto(f"{dagster_page.url}/assets/lake_catalog", wait_until="domcontentloaded")
    tab.get_by_role("button", name="Materialize").first.click(timeout=30_000)
    tab.get_by_role("button", name="Confirm").click(timeout=30_000)  # the datasets above it are not indexed yet
    wait_for(lambda: is_catalog_made(dagster_page), "the run of lake_catalog", seconds=90)
    tab.goto(f"{dagster_page.url}/runs", wait_until="domcontentloaded")
    tab.get_by_text("Success").first.wait_for(timeout=30_000)
    tab.screenshot(path=str(screenshots(tmp_path) / "runs.png"))
    tab.goto(f"{dagster_page.url}/assets/lake_catalog?view=events", wait_until="domcontentloaded")
    assert_shown(tab, "digest")


def test_a_click_leads_from_a_materialisation_to_its_page_and_on_to_a_samples_lineage(dagster_page, tab):
    words = ["-W", "ignore", "-m", "dagster", "asset", "materialize", "-m", "assets.definitions"]
    what = ["--select", "dataset_manifest", "--partition", "grounding"]
    prepared = (
        "from assets.instance import *; open_instance(dagster_home()).add_dynamic_partitions('dataset', ['grounding'])"
    )
    for command in (["-c", prepared], [*words, *what]):
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=dagster_page.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    address = f"{dagster_page.url}/assets/dataset_manifest?view=partitions&partition=grounding"
    tab.goto(address, wait_until="domcontentloaded")
    link = tab.locator(f"a[href^='{dagster_page.environment['K25_PAGES_URL']}/datasets/grounding/']").first
    link.wait_for(timeout=30_000)
    with tab.context.expect_page() as opened:
        link.click()
    gallery = opened.value
    gallery.wait_for_load_state()
    assert gallery.title() == "grounding"
    gallery.locator(".card .head a").first.click()
    gallery.wait_for_load_state()
    assert gallery.title().startswith("Where grounding:")


def is_catalog_made(page) -> bool:
    run = page.newest_run()
    if run is None:
        return False
    assert run["status"] not in ("FAILURE", "CANCELED"), run
    return run["status"] == "SUCCESS" and run["assetSelection"] == [{"path": ["lake_catalog"]}]
