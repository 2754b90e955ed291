"""What a quote takes for granted: speeds and prices, each of which can be given."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What a quote takes for granted; every one of them can be given."""

    tokens_per_gpu_second: float = 2000.0
    """Trained on; 6 operations a parameter and token, 32e9 active parameters, 40% of 989e12 operations a second."""
    images_per_core_second: float = 60.0
    """Decoded, resized and cut to patches, pictures of about half a megapixel."""
    tokens_per_core_second: float = 250_000.0
    """Tokenized from text."""
    usd_per_gpu_hour: float = 2.5
    usd_per_1000_gets: float = 0.0004
    """The list price of S3's standard class."""
    usd_per_gb: float = 0.0
    """Transfer out of the store; nothing inside a region."""
