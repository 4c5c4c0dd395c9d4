"""What a user asks for: the job file's models, datasets and methods, checked; needs no torch and no ray."""

from attrib_batch.spec.base import Name, PartitionName
from attrib_batch.spec.cell import Cell, Component
from attrib_batch.spec.dataset import DatasetSpec
from attrib_batch.spec.demo import load_demo
from attrib_batch.spec.job_file import load_spec, parse_spec
from attrib_batch.spec.method import Direction, MethodSpec, Reading, forward_group, share_forward_passes
from attrib_batch.spec.model import Dtype, ModelSpec
from attrib_batch.spec.sweep import SweepSpec
from attrib_batch.spec.verification import DEFAULT_VERIFIED_PAIRS, VerificationSpec
from attrib_batch.spec.workers import BUILT_IN_RESOURCES, DEFAULT_COLLECTIVE_SECONDS, WorkerKind, WorkersSpec

__all__ = [
    "BUILT_IN_RESOURCES",
    "DEFAULT_COLLECTIVE_SECONDS",
    "DEFAULT_VERIFIED_PAIRS",
    "Cell",
    "Component",
    "DatasetSpec",
    "Direction",
    "Dtype",
    "MethodSpec",
    "ModelSpec",
    "Name",
    "PartitionName",
    "Reading",
    "SweepSpec",
    "VerificationSpec",
    "WorkerKind",
    "WorkersSpec",
    "forward_group",
    "load_demo",
    "load_spec",
    "parse_spec",
    "share_forward_passes",
]
