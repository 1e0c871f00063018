"""Operators of our own, each with its specification, its meaning in numpy and its kernels."""
