"""One dataset kind a file: scan a dataset in place into manifest lines."""
