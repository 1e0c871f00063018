"""Forms with files: parts as they arrive, and their checked fields."""
