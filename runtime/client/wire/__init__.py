"""The connection to a server: calls, credentials, retries, and the conversion of errors."""
