"""The report service over gRPC."""
