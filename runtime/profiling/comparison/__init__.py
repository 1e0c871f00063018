"""Compare: what changed from one profile to another for certain, and the bounds that a profile or a change must keep."""
