"""What goes out: documents to their destinations, until each is acknowledged."""
