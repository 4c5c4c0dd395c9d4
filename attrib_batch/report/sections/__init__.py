"""The parts of the page, from what summaries hold to what templates show."""
