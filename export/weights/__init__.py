"""From a checkpoint's tensors to a bundle's files of weights."""
