"""The connection to a server: calls, who makes them, and what their errors mean."""
