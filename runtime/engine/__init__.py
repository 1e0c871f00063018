"""One loaded bundle that answers many requests at once."""
