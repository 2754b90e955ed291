"""Batch to checkpoint: the trainers, each a process of its own. Torch lives here; Dagster does not."""
