"""The steps of an acceptance, one duty a file."""
