"""Pages for the eye: datasets and steps as stored and as the model saw them, statistics, lineage. Lake in, HTML out."""

from k25_pipelines.gallery.dataset import dataset_page
from k25_pipelines.gallery.page import write_page
from k25_pipelines.gallery.step import step_page
from k25_pipelines.gallery.stored import contact_sheet, sample_lines

__all__ = ["contact_sheet", "dataset_page", "sample_lines", "step_page", "write_page"]
