"""How near a bundle is to the PyTorch model."""
