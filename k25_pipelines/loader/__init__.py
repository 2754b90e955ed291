"""Step to batch: a plan, a store and a rank in; batches out, and the few names from which to go on."""

from k25_pipelines.loader.planloader import PlanLoader
from k25_pipelines.sample.batch import Batch, Provenance, step_digest

__all__ = ["Batch", "PlanLoader", "Provenance", "step_digest"]
