"""Compute as a job asks, and say what it means where the machine fails."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from attrib_batch.attribution.faults import raise_if_no_pair_is_to_blame
from attrib_batch.errors import DeviceLostError, RunInterruptedError
from attrib_batch.models.arithmetic import exact_arithmetic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attrib_batch.spec import ModelSpec


@contextmanager
def computing(spec: ModelSpec, *, shares_process: bool = False) -> Iterator[None]:
    """Compute in the precision that scores are defined in, with what the job asks of kernels.

    Args:
        spec: the model's part of the job.
        shares_process: whether others compute in this process too, so that it cannot be replaced.

    Raises:
        DeviceLostError: the device is lost to this process; no pair is to blame, and a fresh process may do better.
        RunInterruptedError: the same, where the process cannot be replaced.
        ModelError: a kernel of the model is not deterministic, and the job asks for those that are.
    """
    with exact_arithmetic(deterministic=spec.deterministic):
        try:
            try:
                yield
            except Exception as error:  # whatever it is, it is judged and raised again
                raise_if_no_pair_is_to_blame(error)
                raise
        except DeviceLostError as error:
            if not shares_process:
                raise
            raise RunInterruptedError(
                f"{error}. What is committed stays. Start a new process (in a notebook, restart the kernel), and the "
                "same call goes on from there"
            ) from error
