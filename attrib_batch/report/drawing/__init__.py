"""Figures: maps and scatter plots as data of plotly, and as images."""
