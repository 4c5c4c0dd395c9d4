"""A sweep: what is computed, on what, with how many workers.

Each field's description is its documentation; unknown keys are refused. What changes numbers or the layout of files
is part of a fingerprint; how many workers compute it, and in batches of what size, is not.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Self

from pydantic import Field, model_validator

from attrib_batch.spec.base import Name, Strict
from attrib_batch.spec.cell import Cell
from attrib_batch.spec.dataset import DatasetSpec
from attrib_batch.spec.method import MethodSpec
from attrib_batch.spec.model import ModelSpec
from attrib_batch.spec.verification import VerificationSpec


class SweepSpec(Strict):
    """A sweep: every model on every dataset with every method."""

    name: Name = Field(description="the job's name, shown in logs and the report")
    models: tuple[ModelSpec, ...] = Field(min_length=1, description="the models")
    datasets: tuple[DatasetSpec, ...] = Field(min_length=1, description="the tables of prompt pairs")
    methods: tuple[MethodSpec, ...] = Field(min_length=1, description="the methods")
    chunk_pairs: int = Field(
        1024,
        ge=1,
        le=1_000_000,
        description="pairs per chunk: the unit of work, commit and retry; "
        "pairs of one shape are batched within a chunk, so larger ones are faster",
    )
    allow_boundary: bool = Field(
        False,
        description="score pairs whose prompt is cut into other tokens once an answer follows, such as a prompt that "
        "ends in a space: the answer counts as the token that it is on its own; otherwise such a pair is a failure",
    )

    verify: VerificationSpec | None = Field(
        None, description="measure a sample of the pairs by activation patching once all are scored"
    )

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        for what, names in (
            ("models", [model.name for model in self.models]),
            ("datasets", [dataset.id for dataset in self.datasets]),
            ("methods", [method.id for method in self.methods]),
        ):
            twice = [name for name, n in Counter(names).items() if n > 1]
            if twice:
                key = "name" if what == "models" else "id"
                raise ValueError(f"two {what} are both called {twice[0]!r}: give each its own {key}")
        return self

    @property
    def cells(self) -> list[Cell]:
        """The cells of the sweep, models outermost."""
        return [
            Cell(model.name, dataset.id, method.id)
            for model in self.models
            for dataset in self.datasets
            for method in self.methods
        ]

    def model(self, name: str) -> ModelSpec:
        """Return the model of that name."""
        return next(model for model in self.models if model.name == name)

    def dataset(self, name: str) -> DatasetSpec:
        """Return the dataset of that name."""
        return next(dataset for dataset in self.datasets if dataset.id == name)

    def method(self, name: str) -> MethodSpec:
        """Return the method of that name."""
        return next(method for method in self.methods if method.id == name)

    def settings(self) -> dict[str, Any]:
        """Return the keys of the job itself that the stored numbers depend on."""
        return self.model_dump(mode="json", include={"allow_boundary"})
