"""Bytes of one sample to the arrays a model reads."""
