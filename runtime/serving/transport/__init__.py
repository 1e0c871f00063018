"""Receive calls and send answers over gRPC."""
