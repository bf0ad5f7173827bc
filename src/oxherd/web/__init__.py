"""HTTP in the worker's process: health and metrics."""
