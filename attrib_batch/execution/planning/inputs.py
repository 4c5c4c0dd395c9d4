"""Find the datasets and models of an earlier run by their content, wherever they lie now.

A manifest has absolute paths, for workers of any folder. They lead nowhere on another machine, and nowhere at all once
the copy of a folder is gone in which a submitted job ran. So it also has the paths as the job named them, which hold
in a folder laid out like the one that the job was started in. The fingerprint tells whether it is the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrib_batch.errors import DatasetError, ModelError, RequestError, ResumeMismatchError
from attrib_batch.models.sources import BUNDLED, find_model
from attrib_batch.pairs.reading.files import is_local, resolve_path
from attrib_batch.pairs.reading.reader import PairTable
from attrib_batch.spec import SweepSpec

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from attrib_batch.spec import DatasetSpec, ModelSpec
    from attrib_batch.tables import Manifest

_HUB = "hub:"
_HASH = "sha256:"


@dataclass(frozen=True)
class InputLocations:
    """Where a person says that inputs lie now; what is not named is looked for."""

    datasets: Mapping[str, str] = field(default_factory=dict)
    """Paths or URLs by dataset id."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Folders by model name."""


def named_paths(asked: SweepSpec, resolved: SweepSpec) -> dict[str, dict[str, str]]:
    """Return the paths of a job that were made absolute, as it named them."""
    datasets = {
        mine.id: mine.path
        for mine, full in zip(asked.datasets, resolved.datasets, strict=True)
        if is_local(mine.path) and mine.path != full.path
    }
    models = {
        mine.name: mine.id for mine, full in zip(asked.models, resolved.models, strict=True) if mine.id != full.id
    }
    return {"datasets": datasets, "models": models}


def find_inputs(
    manifest: Manifest,
    spec: SweepSpec,
    locations: InputLocations | None = None,
    *,
    given: Collection[str] = (),
) -> SweepSpec:
    """Return the job of a manifest with every dataset and model where it lies now.

    Args:
        manifest: the manifest.
        spec: the job in it.
        locations: where to look first.
        given: models that are in memory, by name; they are not looked for.

    Raises:
        RequestError: one is not found; the message says what to pass.
        ResumeMismatchError: what is found holds something else.
    """
    locations = locations or InputLocations()
    _check_names("--dataset", "ID", locations.datasets, [dataset.id for dataset in spec.datasets])
    _check_names("--model", "NAME", locations.models, [model.name for model in spec.models])
    named, known = manifest.named, manifest.scoring.identities
    data = spec.model_dump(mode="json")
    for entry, dataset in zip(data["datasets"], spec.datasets, strict=True):
        paths = _candidates(locations.datasets.get(dataset.id), dataset.path, named.get("datasets", {}).get(dataset.id))
        entry["path"] = _find_dataset(dataset, paths, known.datasets[dataset.id]["content"])
    for entry, model in zip(data["models"], spec.models, strict=True):
        if model.name in given:
            continue
        paths = _candidates(locations.models.get(model.name), model.id, named.get("models", {}).get(model.name))
        entry.update(_find_model(model, paths, known.models[model.name]["weights"]))
    return SweepSpec.model_validate(data)


def _candidates(said: str | None, before: str, named: str | None) -> list[str]:
    return [said] if said is not None else list(dict.fromkeys(path for path in (before, named) if path is not None))


def _check_names(option: str, kind: str, said: Iterable[str], known: list[str]) -> None:
    for name in said:
        if name not in known:
            raise RequestError(f"{option} {kind}=PATH: the run has no {name!r}; it has {', '.join(known)}")


def _find_dataset(dataset: DatasetSpec, paths: list[str], fingerprint: str) -> str:
    others = []
    for path in map(resolve_path, paths):
        if is_local(path) and not Path(path).exists():
            continue
        if PairTable.open(path, dataset.limit, corrupted=False).fingerprint() == fingerprint:
            return path
        others.append(path)
    option = f"--dataset {dataset.id}=PATH"
    if others:
        raise ResumeMismatchError(
            f"{' and '.join(others)} has changed since the run: its scores cannot be checked against it. "
            f"Name the file as it was with {option}."
        )
    raise DatasetError(f"dataset {dataset.id}: {_not_here(paths)} Name the same file with {option}, or its URL.")


def _find_model(model: ModelSpec, paths: list[str], fingerprint: str) -> dict[str, Any]:
    """Return the keys of the model's entry in the job that say where it is."""
    where: dict[str, Any] = {"id": paths[0]}
    if fingerprint.startswith(_HUB) and model.workers.kind != "ndif":
        # What its branch was at. (An NDIF server knows a model by the revision as it was asked for.)
        where["revision"] = fingerprint.rpartition("@")[2]
    elif fingerprint.startswith(_HASH) and paths[0] not in BUNDLED:
        folders = [path for path in paths if Path(path).expanduser().is_dir()]
        if not folders:
            raise ModelError(
                f"model {model.name}: {_not_here(paths)} Name the folder of the same model with "
                f"--model {model.name}=PATH."
            )
        same = [path for path in folders if _fingerprint(model, {"id": path}) == fingerprint]
        where["id"] = str(Path((same or folders)[0]).expanduser().resolve())
    if _fingerprint(model, where) != fingerprint:
        raise ResumeMismatchError(
            f"model {model.name}: {where['id']} is not the model that the run was made with ({fingerprint}): its "
            f"scores cannot be checked with it. Name the folder of that one with --model {model.name}=PATH."
        )
    return where


def _fingerprint(model: ModelSpec, where: dict[str, Any]) -> str:
    return find_model(model.model_copy(update=where)).fingerprint


def _not_here(paths: list[str]) -> str:
    tried = "neither " + " nor ".join(paths) if len(paths) > 1 else f"{paths[0]} not"
    return f"{tried} found (looked from {Path.cwd()}). It may lie on another machine, or in a folder that is gone."
