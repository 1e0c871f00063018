"""Attention as this project's own operators: their specification, their meaning in numpy, and C++ for CPUs."""
