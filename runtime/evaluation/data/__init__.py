"""The rows of a data set: reading them, and recognising what each asks."""
