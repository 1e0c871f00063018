"""The server process: options, start, engine replacement, shutdown."""
