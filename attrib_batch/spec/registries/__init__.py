"""The registries: one entry each for a method and a metric, and those that installed packages offer."""
