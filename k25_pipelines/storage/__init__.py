"""Where bytes live: object stores, throttle and retry, tiered cache."""
