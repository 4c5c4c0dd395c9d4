"""Cells side by side: differences with intervals, and rank correlations."""
