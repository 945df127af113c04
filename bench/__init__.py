"""The benchmark: what the platform costs beside bare relays, as ratios measured in one run. See docs/performance.md."""
