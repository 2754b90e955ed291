"""A trainer as a Kubernetes Job, a pod a node: created, followed and removed by this process, whatever ends it.

K25_TRAINER_PYTHON=infra/launchers/kubernetes-python K25_NODES=4 K25_RANKS=32 K25_GPUS_PER_NODE=8
The pod's shape (image, volumes, GPUs) is infra/kubernetes/trainer-job.yaml, or the file that K25_TRAINER_JOB names.
"""

import copy
import hashlib
import os
import re
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from infra.launchers.words import LOCAL_ONLY, Asked, asked

TEMPLATE = Path(__file__).resolve().parents[1] / "kubernetes" / "trainer-job.yaml"
POLL_SECONDS = 2.0
PASSED_ON = re.compile(r"^(K25_|DAGSTER_PIPES_|OMP_|NCCL_|MLFLOW_|PYTHONUNBUFFERED$)")
"""Variables that the pod gets from here; credentials come from its own Secret."""


def trainer_job(template: Mapping[str, Any], ask: Asked, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the Job of a trainer: the template with name, pods, command, GPUs and environment filled in."""
    job = copy.deepcopy(dict(template))
    name = job_name(ask)
    job["metadata"]["name"] = name
    spec = job["spec"]
    spec |= {"completions": ask.num_nodes, "parallelism": ask.num_nodes, "completionMode": "Indexed"}
    pod = spec["template"]["spec"]
    pod["subdomain"] = name
    spec["template"]["metadata"].setdefault("labels", {})["k25/trainer"] = name
    [container] = pod["containers"]
    namespace = job["metadata"].get("namespace", "default")
    head = f"{name}-0.{name}.{namespace}.svc" if ask.num_nodes > 1 else "127.0.0.1"
    python = environment.get("K25_REMOTE_PYTHON", "python")
    container["command"] = ask.command(python, node="$(JOB_COMPLETION_INDEX)", head=head)
    passed = {k: v for k, v in sorted(environment.items()) if PASSED_ON.match(k) and k not in LOCAL_ONLY}
    index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    own = [{"name": "JOB_COMPLETION_INDEX", "valueFrom": index}]
    container["env"] = [*container.get("env", []), *own, *({"name": k, "value": v} for k, v in passed.items())]
    gpus = environment.get("K25_GPUS_PER_NODE", str(ask.ranks_per_node))
    container.setdefault("resources", {}).setdefault("limits", {})["nvidia.com/gpu"] = gpus
    return job


def trainer_service(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headless Service under whose name the pods of a Job find each other."""
    name = job["metadata"]["name"]
    metadata = {key: value for key, value in job["metadata"].items() if key in ("name", "namespace", "labels")}
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"k25/trainer": name}}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def job_name(ask: Asked) -> str:
    """Return the Job's name, the same for the same words: what a killed launcher left is found by it."""
    return f"k25-{hashlib.sha256(' '.join(ask.words).encode()).hexdigest()[:16]}"


class Cluster:
    """The Kubernetes API, as far as a trainer needs it."""

    def __init__(self, namespace: str) -> None:
        """Connect as the pod's service account, or as the kubeconfig says."""
        from kubernetes import client, config

        try:
            config.load_incluster_config()
        except config.ConfigException:
            config.load_kube_config()
        self.namespace, self.client = namespace, client
        self.jobs: Any = client.BatchV1Api()
        self.core: Any = client.CoreV1Api()

    def remove(self, name: str) -> None:
        """Remove a Job with its pods and its Service; return when they are gone."""
        for delete in (
            lambda: self.jobs.delete_namespaced_job(name, self.namespace, propagation_policy="Foreground"),
            lambda: self.core.delete_namespaced_service(name, self.namespace),
        ):
            self._unless_gone(delete)
        while self._unless_gone(lambda: self.jobs.read_namespaced_job(name, self.namespace)) is not None:
            time.sleep(POLL_SECONDS)

    def create(self, job: Mapping[str, Any]) -> None:
        """Create the Service and the Job."""
        self.core.create_namespaced_service(self.namespace, trainer_service(job))
        self.jobs.create_namespaced_job(self.namespace, job)

    def status(self, name: str) -> str | None:
        """Return `Complete` or `Failed` once the Job is that."""
        status = self.jobs.read_namespaced_job(name, self.namespace).status
        ended = [each.type for each in status.conditions or [] if each.status == "True"]
        return next((each for each in ended if each in ("Complete", "Failed")), None)

    def log_of_first(self, name: str) -> str:
        """Return what node 0 has said; empty while it has no pod that started."""
        labels = f"k25/trainer={name},batch.kubernetes.io/job-completion-index=0"
        pods = self.core.list_namespaced_pod(self.namespace, label_selector=labels).items
        if not pods:
            return ""
        pod = pods[-1].metadata.name
        answer = self._unless_gone(
            lambda: self.core.read_namespaced_pod_log(pod, self.namespace, _preload_content=False)  # else bytes' repr
        )
        return answer.data.decode(errors="replace") if answer else ""

    def _unless_gone(self, ask: Any) -> Any:
        try:
            return ask()
        except self.client.ApiException as error:
            if error.status in (400, 404):  # 400: the container has not started
                return None
            raise


def run(cluster: Cluster, job: Mapping[str, Any]) -> int:
    """Run a Job to its end, saying here what its first pod says; return 0, or 1 where it failed."""
    name, said = job["metadata"]["name"], ""
    cluster.remove(name)
    try:
        cluster.create(job)
        while (ended := cluster.status(name)) is None:
            said = _say_on(said, cluster.log_of_first(name))
            time.sleep(POLL_SECONDS)
        _say_on(said, cluster.log_of_first(name))
    finally:
        cluster.remove(name)
    return 0 if ended == "Complete" else 1


def _say_on(said: str, whole: str) -> str:
    sys.stdout.write(whole[len(said) :])
    sys.stdout.flush()
    return whole


def main() -> int:
    """Run what the words ask for as a Job."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the Job is removed on the way out
    try:
        template = yaml.safe_load(Path(os.environ.get("K25_TRAINER_JOB", TEMPLATE)).read_text())
        job = trainer_job(template, asked(sys.argv[1:], os.environ), os.environ)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return run(Cluster(job["metadata"].get("namespace", "default")), job)


if __name__ == "__main__":
    sys.exit(main())
