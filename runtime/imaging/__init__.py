"""Image files to frames and patches, and the sandboxed processes that decode them."""
