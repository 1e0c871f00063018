"""Rounding with data: the PyTorch model runs a layer at a time, and each weight is rounded for the inputs that it really has."""
