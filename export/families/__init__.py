"""The published model families: what differs between them, one file each."""
