"""The run of a trainer in MLflow, where trainers tell one: our run's name in, MLflow's id and page out.

Trainers tag their MLflow run with `k25.run`; here it is found by that tag through MLflow's REST interface, which needs
no package. The other way, the tag leads from MLflow to `k25 lineage --checkpoint` and to the lake.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

RUN_TAG = "k25.run"
TIMEOUT_SECONDS = 5.0


def mlflow_run(run: str, *, uri: str, experiment: str = "k25") -> dict[str, str]:
    """Return `id` and `url` of a run in MLflow; where it cannot be known, `unknown` with why.

    Args:
        run: as the lake calls it.
        uri: MLFLOW_TRACKING_URI; only a server can be asked.
        experiment: MLflow's name of the experiment.
    """
    if urlsplit(uri).scheme not in ("http", "https"):
        return {"unknown": f"{uri} is no server; mlflow finds the run by its tag {RUN_TAG} = {run}"}
    api = f"{uri.rstrip('/')}/api/2.0/mlflow"
    try:
        found = _asked(f"{api}/experiments/get-by-name?experiment_name={quote(experiment)}")["experiment"]
        body = {"experiment_ids": [found["experiment_id"]], "filter": f"tags.`{RUN_TAG}` = '{run}'", "max_results": 1}
        runs = _asked(f"{api}/runs/search", body).get("runs", [])
    except (urllib.error.URLError, OSError, ValueError, KeyError) as error:
        return {"unknown": f"{uri} was asked in vain: {error}"}
    if not runs:
        return {"unknown": f"{uri} has no run with the tag {RUN_TAG} = {run}"}
    info = runs[0]["info"]
    page = f"{uri.rstrip('/')}/#/experiments/{info['experiment_id']}/runs/{info['run_id']}"
    return {"id": info["run_id"], "url": page}


def _asked(url: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
        return json.loads(answer.read())
