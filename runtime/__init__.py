"""Runs a bundle: images and a prompt in, a streamed ultrasound report out. Needs neither torch nor transformers."""
