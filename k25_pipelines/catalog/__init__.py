"""What there is: dataset kinds indexed in place, manifests, registry, statistics."""
