"""The report service on many computers: a Ray Serve application whose replicas hold an engine each."""
