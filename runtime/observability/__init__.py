"""Observability of a server: records of calls, logs, metrics, traces."""
