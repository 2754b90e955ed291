"""Statistics in units that matter: tokens, patches, languages, duplicates, balance of steps. Lake in, data out."""

from k25_pipelines.insight.balance import step_balance
from k25_pipelines.insight.duplicates import Duplicates, find_duplicates
from k25_pipelines.insight.sizes import Sizes, sample_sizes

__all__ = ["Duplicates", "Sizes", "find_duplicates", "sample_sizes", "step_balance"]
