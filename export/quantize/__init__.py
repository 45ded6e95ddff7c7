"""Quantization, one file per flavour; each has ``quantize(model, images, advance, keep_float=…)``."""
