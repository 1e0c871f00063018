"""The socket: connections, TLS, and the end of both within a deadline."""
