"""What a bundle is built from: the published checkpoint, its config, an adapter."""
