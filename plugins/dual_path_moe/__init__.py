"""DualPathMoE: the dense path and the mixture of experts of one decoder layer as one operator (see README.md in this folder)."""
