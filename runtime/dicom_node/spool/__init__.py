"""What was received and what is owed, on disk: the node's only state."""
