"""Turns a published EchoVLM checkpoint into a bundle of engines. Needs torch; runs where integrators work."""
