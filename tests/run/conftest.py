"""Fixtures shared by the tests of runs: a job whose runs are made to fail."""

from tests.support.faulty_runs import runs, undisturbed

__all__ = ["runs", "undisturbed"]
