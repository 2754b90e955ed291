"""Trainers on a cluster: the words of an interpreter become a Slurm step or a Kubernetes Job."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from infra.launchers.kubernetes import TEMPLATE, trainer_job, trainer_service
from infra.launchers.slurm import srun_command
from infra.launchers.words import asked

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["-m", "trainers.ranks", "--logs", "/srv/run", "16", "trainers.pretrain", "/srv/run/pretrain.json"]
TWO_NODES = {"K25_NODES": "2", "K25_PARENT_PID": "7", "DAGSTER_PIPES_MESSAGES": "abc", "AWS_SECRET_ACCESS_KEY": "x"}


def test_ranks_are_spread_over_nodes_and_started_by_torchrun():
    ask = asked(WORDS, TWO_NODES)
    assert ask.command("python", node="1", head="n0") == [
        "python",
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        "--nproc-per-node=8",
        "--node-rank=1",
        "--master-addr=n0",
        "--master-port=29500",
        "-m",
        "trainers.pretrain",
        "/srv/run/pretrain.json",
    ]


def test_one_rank_needs_no_torchrun():
    ask = asked(["-m", "trainers.evaluate", "captions", "run.json"], TWO_NODES)
    assert ask.command("python", node="0", head="") == ["python", "-m", "trainers.evaluate", "captions", "run.json"]


@pytest.mark.parametrize(
    ("words", "nodes", "said"),
    [
        (["run.json"], "1", "expected `-m MODULE ...`"),
        (["-m", "trainers.ranks", "16"], "1", "expected `-m trainers.ranks --logs FOLDER RANKS MODULE ...`"),
        (WORDS, "3", r"16 ranks \(K25_RANKS\) do not spread evenly over 3 nodes"),
    ],
)
def test_what_cannot_be_launched_is_named(words, nodes, said):
    with pytest.raises(ValueError, match=said):
        asked(words, {"K25_NODES": nodes})


def test_a_slurm_step_has_a_task_a_node():
    command = srun_command(asked(WORDS, TWO_NODES), {"K25_SLURM": "--partition=gpu --gpus-per-node=8"})
    assert command[:-1] == [
        "srun",
        "--job-name=k25-pretrain",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--kill-on-bad-exit=1",
        "--export=ALL",
        "--unbuffered",
        "--partition=gpu",
        "--gpus-per-node=8",
        "bash",
        "-c",
    ]
    assert "--node-rank=$SLURM_NODEID --master-addr=$(scontrol show hostnames" in command[-1]


def test_the_slurm_script_stands_in_for_an_interpreter(tmp_path):
    """What is run is what srun is told; its exit code comes back, and variables of this machine alone stay here."""
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/bash\n[ -z "$K25_PARENT_PID" ] || exit 9\nexec "${@: -3}"\n')
    srun.chmod(0o755)
    own = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "K25_PYTHON": sys.executable}
    own |= {"K25_REMOTE_PYTHON": sys.executable, "K25_PARENT_PID": "7"}
    words = [str(ROOT / "infra/launchers/slurm-python"), "-m", "json.tool", "no-such-file.json"]
    done = subprocess.run(words, env=own, capture_output=True, text=True)
    assert (done.returncode, "no-such-file.json" in done.stderr) == (2, True)


def job_of(words: list[str]) -> dict:
    return trainer_job(yaml.safe_load(TEMPLATE.read_text()), asked(words, TWO_NODES), TWO_NODES)


def test_a_job_has_a_pod_a_node_and_is_valid():
    job = job_of(WORDS)
    for made in (job, trainer_service(job)):
        kubernetes_validate.validate(made, kubernetes_validate.latest_version(), strict=True)
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert (job["spec"]["completions"], container["resources"]["limits"]["nvidia.com/gpu"]) == (2, "8")
    name = job["metadata"]["name"]
    assert container["command"][5:7] == [
        "--node-rank=$(JOB_COMPLETION_INDEX)",
        f"--master-addr={name}-0.{name}.k25.svc",
    ]


def test_credentials_and_this_machines_variables_stay_out_of_the_job():
    [container] = job_of(WORDS)["spec"]["template"]["spec"]["containers"]
    assert [each["name"] for each in container["env"]] == [
        "JOB_COMPLETION_INDEX",
        "DAGSTER_PIPES_MESSAGES",
        "K25_NODES",
    ]


class Api(BaseHTTPRequestHandler):
    """The few calls of a Kubernetes API that the launcher makes; a Job ends at the third look."""

    calls: list[tuple[str, str]]
    looks: int
    ends: str

    def answer(self, code: int, body: object) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        state = type(self)
        if self.path.endswith("/log"):
            return self.answer(200, "step 1\nstep 2\n" if state.looks > 1 else "step 1\n")
        if "/pods" in self.path:
            return self.answer(200, {"kind": "PodList", "items": [{"metadata": {"name": "pod-0"}}]})
        if not any(method == "POST" and "/jobs" in path for method, path in state.calls) or state.looks > 2:
            return self.answer(404, {"kind": "Status", "code": 404})
        state.looks += 1
        ended = [{"type": state.ends, "status": "True"}] if state.looks > 2 else []
        return self.answer(200, {"kind": "Job", "status": {"conditions": ended}})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        type(self).calls.append(("POST", self.path))
        self.answer(201, {})

    def do_DELETE(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        type(self).calls.append(("DELETE", self.path.split("?")[0]))
        self.answer(404 if type(self).looks == 0 else 200, {"kind": "Status"})

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("ends", "code"), [("Complete", 0), ("Failed", 1)])
def test_the_job_is_followed_to_its_end_and_removed(tmp_path, ends, code):
    handler = type("Handler", (Api,), {"calls": [], "looks": 0, "ends": ends})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        access = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{server.server_address[1]}"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "users": [{"name": "test", "user": {}}],
        }
        (tmp_path / "config").write_text(yaml.safe_dump(access))
        own = {**os.environ, "KUBECONFIG": str(tmp_path / "config"), "K25_PYTHON": sys.executable}
        script = str(ROOT / "infra/launchers/kubernetes-python")
        words = [script, "-m", "trainers.pretrain", "run.json"]
        done = subprocess.run(words, env=own, capture_output=True, text=True, timeout=60)
        server.shutdown()
    assert (done.returncode, done.stdout) == (code, "step 1\nstep 2\n"), done.stderr
    kinds = [(method, "jobs" if "/jobs" in path else "services") for method, path in handler.calls]
    removed = [("DELETE", "jobs"), ("DELETE", "services")]
    assert kinds == [*removed, ("POST", "services"), ("POST", "jobs"), *removed]
