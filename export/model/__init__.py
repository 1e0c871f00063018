"""EchoVLM in PyTorch, one file per traced part. Eager it is the reference; exported it is a graph of named operators."""
