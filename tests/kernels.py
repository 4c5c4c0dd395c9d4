"""Run the tests that compare scores once with each of several kernels, as on other processors: ``make test-kernels``.

Every setting rounds differently. The variables reach Ray's workers and the ranks of split models too. Prints for each
setting how many tests passed and how much of their tolerance the comparisons used.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

SETTINGS: tuple[dict[str, str], ...] = (
    {},
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"MKL_CBWR": "COMPATIBLE"},
    {"MKL_CBWR": "AVX2"},
    {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    {"ATTRIB_BATCH_TEST_THREADS": "2"},
)
TESTS = (
    "tests/test_near.py",
    "tests/oracle",
    "tests/attribution",
    "tests/models/test_sharded.py",
    "tests/execution/workers/test_replica.py",
    "tests/execution/test_shards.py",
    "tests/execution/test_verification.py",
    "tests/test_end_to_end.py",
)


def main(arguments: list[str]) -> int:
    """Run pytest with these arguments, or on ``TESTS``, under every setting; return 1 if a test failed under one."""
    failed = False
    for setting in SETTINGS:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", *(arguments or TESTS)]
        done = subprocess.run(command, env={**os.environ, **setting}, stdout=subprocess.PIPE, text=True)
        name = ", ".join(f"{key}={value}" for key, value in setting.items()) or "default"
        used = re.search(r"^rounding: .*$", done.stdout, re.MULTILINE)
        lines = done.stdout.strip().splitlines()
        if done.returncode:
            failed = True
            sys.stdout.write(done.stdout)
        sys.stdout.write(f"{name}: {lines[-1] if lines else 'no output'}; {used[0] if used else 'nothing compared'}\n")
        sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
