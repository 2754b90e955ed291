"""The learning rate as a function of the step alone: nothing to save, nothing to restore."""

import math

from trainers.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the rate of a step: linear up over the warm-up, then half a cosine down to the final share of the peak.

    Args:
        step: 0 to config.steps - 1; the first step of a warm-up of n already has 1 / n of the peak, the first one
            after it the peak, and the last one of the run, if it comes later, exactly the final share of the peak.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    past = (step - config.warmup_steps) / max(1, config.steps - 1 - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * past))
    return config.learning_rate * (config.final_learning_rate + (1 - config.final_learning_rate) * cosine)
