"""DualPathMoE: the dense path and the mixture of experts of one decoder layer as one operator (README.md beside this file)."""
