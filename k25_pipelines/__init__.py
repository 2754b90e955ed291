"""The data layer: from objects in a bucket to the batches of a training step, in an order that is data."""
