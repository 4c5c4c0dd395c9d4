"""Tests of attrib_batch.report."""
