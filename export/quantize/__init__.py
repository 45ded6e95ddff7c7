"""Quantization, one file per flavour."""
