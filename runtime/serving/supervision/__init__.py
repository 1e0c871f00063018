"""The process: its options, its start, its engine, its end."""
