"""The methods, one module each: every one scores pairs of one shape."""
