"""Recognize file formats and find their frames, without decoding anything."""
