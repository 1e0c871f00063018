"""Sandboxed processes that decode image files."""
