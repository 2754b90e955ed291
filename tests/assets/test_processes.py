"""Whose process is whose: orphaned trainers are found and stopped, dead runs are told from busy ones."""

import os
import signal
import subprocess
import sys

import dagster as dg
import pytest

from assets import processes
from assets.instance import close_dead_runs, prepare_home
from assets.processes import RUN_FILE_MARK, TrainerBusyError, marked_processes, only_trainer, stop_marked
from tests.assets.conftest import ROOT

SLEEPER = "import time; time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
RECORDER = "import sys, pathlib, assets.processes as p; p.record_process(pathlib.Path(sys.argv[1]), sys.argv[2])"
SPAWNER = (
    f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], start_new_session=True).wait()"
)


@pytest.fixture
def start(tmp_path):
    """Start a marked process; all of them are gone in the end."""
    run_file = tmp_path / "run.json"
    started = []

    def marked(program: str) -> subprocess.Popen:
        environment = {**os.environ, RUN_FILE_MARK: str(run_file)}
        process = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    marked.run_file = run_file
    yield marked
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_rank_in_a_session_of_its_own_is_stopped_too(start):
    parent = start(SPAWNER)
    assert processes.wait_until(lambda: len(marked_processes(start.run_file)) == 2, timeout_seconds=20)
    assert len(stop_marked(start.run_file, grace_seconds=5)) == 2
    assert parent.wait(timeout=10) is not None
    assert marked_processes(start.run_file) == []


def test_a_trainer_that_ignores_the_question_is_killed(start):
    stubborn = start(STUBBORN)
    stubborn.stdout.readline()
    stop_marked(start.run_file, grace_seconds=0.5)
    assert stubborn.wait(timeout=10) == -signal.SIGKILL


def test_processes_of_another_run_are_left_alone(start, tmp_path):
    other = start(SLEEPER)
    assert stop_marked(tmp_path / "another.json", grace_seconds=0) == []
    assert other.poll() is None


def test_one_run_has_one_trainer_at_a_time(tmp_path):
    folder = tmp_path / "joint-abc"
    busy = pytest.raises(TrainerBusyError, match=f"joint-abc is being trained by process {os.getpid()}")
    with only_trainer(folder), busy, only_trainer(folder):
        pass
    with only_trainer(folder):
        pass


def test_the_run_of_a_killed_process_is_closed_and_that_of_a_live_one_is_not(place):
    folder = processes.records_folder(place.instance.root_directory)
    job = place.defs.resolve_job_def("demo")
    runs = [place.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED) for _ in range(2)]
    subprocess.run([sys.executable, "-c", RECORDER, str(folder), runs[0].run_id], cwd=ROOT, check=True)
    processes.record_process(folder, runs[1].run_id)
    assert close_dead_runs(place.instance) == [runs[0].run_id]
    found = [place.instance.get_run_by_id(run.run_id).status for run in runs]
    assert found == [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.STARTED]
    assert close_dead_runs(place.instance) == []


def test_the_settings_of_an_instance_are_copied_once_and_then_its_owners(tmp_path):
    home = prepare_home(tmp_path / "home")
    assert "nux" in (home / "dagster.yaml").read_text()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    prepare_home(home)
    assert (home / "dagster.yaml").read_text() == "telemetry: {enabled: false}\n"
