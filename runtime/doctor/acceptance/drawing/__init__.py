"""The page of an acceptance."""
