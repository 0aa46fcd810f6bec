"""Kernels that were written for FlashInfer-Bench: a Solution in JSON, called as its Definition says."""
