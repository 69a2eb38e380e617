"""Tensors in, tensors out: no optimiser, no file, no robot."""
