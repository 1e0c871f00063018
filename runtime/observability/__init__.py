"""What is seen of a server: records of calls, logs, metrics, traces."""
