"""Check a request against its datasets, models and output, and plan its work."""
