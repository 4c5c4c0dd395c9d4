"""Talk to an NDIF server: the model is there, and so is the work."""
