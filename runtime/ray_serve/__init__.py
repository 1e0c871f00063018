"""The report service on many computers: a Ray Serve application in which each replica has an engine."""
