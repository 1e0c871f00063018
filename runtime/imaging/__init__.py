"""Image files to frames and patches, and the processes that files are decoded in."""
