"""Processes that decode image files and can do little else."""
