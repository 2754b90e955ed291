"""The embedded Dagster instance: its folder, its partitions, and the runs that a killed process left open.

Run: python -m assets.instance    (before the web UI or the daemon: prepares $DAGSTER_HOME)
"""

import shutil
import sys
from pathlib import Path

import dagster as dg

from assets import processes
from assets.partitions import PARTITION_SET
from assets.resources import DAGSTER_HOME_DEFAULT, REPOSITORY, dagster_home, lake_from_env
from k25_pipelines.storage.store import Store

TEMPLATE = REPOSITORY / "infra" / "dagster" / "dagster.yaml"


def prepare_home(folder: Path) -> Path:
    """Return `folder` as an absolute path, made, with the instance's settings copied in where there are none."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "dagster.yaml").exists():
        shutil.copyfile(TEMPLATE, folder / "dagster.yaml")
    return folder


def open_instance(folder: Path) -> dg.DagsterInstance:
    """Return the instance below `folder`, prepared, with the runs of dead processes closed."""
    instance = dg.DagsterInstance.from_config(str(prepare_home(folder)))
    close_dead_runs(instance)
    return instance


def add_datasets(instance: dg.DagsterInstance, lake: Store) -> list[str]:
    """Make a partition of each dataset that the lake knows; return all their names, sorted."""
    from assets.data_layer import known_datasets

    names = known_datasets(lake)
    instance.add_dynamic_partitions(PARTITION_SET, names)
    return names


def close_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark as failed the runs whose process is gone (killed, or lost with the machine); return their ids.

    Runs that a live process executes are left alone, so this may be called at any time.
    """
    closed = []
    folder = processes.records_folder(instance.root_directory)
    for run_id, alive in processes.recorded_runs(folder).items():
        run = instance.get_run_by_id(run_id)
        is_open = run is not None and not run.is_finished
        if run and is_open and not alive:
            instance.report_run_failed(run, "The process of this run was killed. Launch it again: it continues.")
            closed.append(run_id)
        if not (is_open and alive):
            processes.forget_process(folder, run_id)
    return closed


def main() -> None:
    """Prepare $DAGSTER_HOME and say what was done."""
    folder = dagster_home()
    instance = open_instance(folder)
    names = add_datasets(instance, lake_from_env().open())
    sys.stdout.write(
        f"DAGSTER_HOME={folder} (default {DAGSTER_HOME_DEFAULT}); datasets: {', '.join(names) or 'none'}\n"
    )


if __name__ == "__main__":
    main()
