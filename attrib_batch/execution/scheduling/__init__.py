"""Decide which worker does what next, and what follows when one is lost; without Ray, files or a clock."""
