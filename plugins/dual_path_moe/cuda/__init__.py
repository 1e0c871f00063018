"""DualPathMoE for NVIDIA GPUs: Triton kernels and their ahead-of-time build to cubins (README.md beside this file)."""
