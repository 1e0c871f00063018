"""From the PyTorch model to a target's graph."""
