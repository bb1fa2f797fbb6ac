"""Tensors in, tensors out: the Open Inference Protocol."""
