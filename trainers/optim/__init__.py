"""Optimizers: gradients in, moved weights out; DeepSpeed stays outside."""
