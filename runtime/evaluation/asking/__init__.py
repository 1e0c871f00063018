"""Asking a model, in this process or on a server, and keeping its answers."""
