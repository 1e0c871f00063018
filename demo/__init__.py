"""The first run: a checkpoint small enough to ship, and everything that `make demo` does with it."""
