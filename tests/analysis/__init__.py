"""Tests of attrib_batch.analysis."""
