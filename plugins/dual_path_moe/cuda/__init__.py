"""DualPathMoE for NVIDIA GPUs: Triton kernels and their ahead-of-time build to cubins (see README.md in this folder)."""
