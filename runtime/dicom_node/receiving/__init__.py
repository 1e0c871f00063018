"""What comes in: associations, who may send, instances."""
