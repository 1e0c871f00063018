"""A first run: a checkpoint small enough to ship, and the whole journey on it."""
