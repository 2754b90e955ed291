"""In what order: arrays in, arrays out, no I/O."""
