"""Build a bundle of engines from a published EchoVLM checkpoint. Needs torch, and runs on an integrator's machine."""
