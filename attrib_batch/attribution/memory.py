"""How much memory a micro-batch takes, and how much there is.

A micro-batch of a method takes memory in proportion to its suffix positions (activations, the graph, what is captured),
to the positions of its prefixes (their keys and values) and, where a metric reads all logits, to its rows. The first is
measured: the method scores two small sets of made-up pairs while the tensors it holds are counted, and a line is laid
through both peaks. The others follow from the sizes of the model.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from attrib_batch.attribution.batches import Size, size_of, suffix_tokens
from attrib_batch.attribution.engine import Budget, TokenBudget
from attrib_batch.attribution.groups import MethodGroup, group_methods
from attrib_batch.attribution.passes import Passes
from attrib_batch.models.load import LoadedModel
from attrib_batch.pairs.encoding.encode import EncodedPair
from attrib_batch.spec import MethodSpec
from attrib_batch.spec.registries.metrics import metric_entry

GIB = 1 << 30
MOST_TOKENS = {"cpu": 8192, "cuda": 65536}
"""Most suffix positions of a micro-batch by kind of device: beyond, a pass does not get faster."""
MOST_BYTES = {"cpu": 3 * GIB // 4}
"""Most memory of a micro-batch: more suffixes at once do not make a CPU faster. A GPU takes what is free."""
SHARE = 0.6
"""How much of what is free a micro-batch may be expected to take: allocators keep more than is in use."""
FLOAT_BYTES = 4
MEASURED_KIND = "atp"
"""The kind of method that is measured in place of one that computes no gradient."""
MEASURED_METRIC = "logit_diff"
"""The metric that is measured in place of any."""
LEAST_SHRUNK = 2**-10
"""What is left at least of what memory allows when it ran out again and again."""
MEASURED_PAIRS = {"cpu": (2, 6), "cuda": (8, 24)}
"""The pairs of the two measured sets, by kind of device: on a GPU many runs are attended to in another way than few."""
_TIMED_LENGTH, _TIMED_PASSES = 8, 3
"""The positions of a row of a pass that is timed, and how often it is."""
_PREFIX, _SUFFIX = 2, 8
"""The positions of a made-up pair."""


@dataclass(frozen=True)
class MemoryModel:
    """What a micro-batch of a method takes, in bytes."""

    fixed: float
    suffix_token: float
    """For each suffix position of both prompts of a pair."""
    prefix_token: float
    """For each position of a prefix that is held."""
    row: float
    """For each prompt, beside its positions."""

    def bytes_of(self, size: Size) -> float:
        """Return what a micro-batch takes."""
        return (
            self.fixed
            + self.suffix_token * size.suffix_tokens
            + self.prefix_token * size.prefix_tokens
            + self.row * size.rows
        )


@dataclass(frozen=True)
class MemoryLimit:
    """How large the micro-batches of a group may be, by what they take."""

    model: MemoryModel
    room: float
    """Bytes."""
    tokens: TokenBudget
    """Shrinks when memory runs out all the same."""
    padded: bool

    def fits(self, size: Size) -> bool:
        """Return whether a micro-batch is expected to take no more than there is."""
        return self.tokens.fits(size) and self.model.bytes_of(size) <= self.room

    def batch_tokens(self, batch: Sequence[EncodedPair]) -> int:
        """Return how many positions may be computed at once beside the prefixes of a micro-batch."""
        prefixes = replace(size_of(batch, padded=self.padded), suffix_tokens=0)
        beside = self.room - self.model.bytes_of(prefixes)
        # A pair alone is computed whatever it takes, so as many positions as it has are no more than that.
        fitting = max(int(beside / max(self.model.suffix_token, 1.0)), suffix_tokens(batch[:1]))
        return max(1, min(self.tokens.tokens, fitting))

    def keeps(self, _n_suffix_tokens: int, n_bytes: int) -> bool:
        """Return whether so much may be kept beside a micro-batch."""
        return n_bytes <= self.room


Agreed = Callable[[Sequence[float]], Sequence[float]]
"""Takes numbers that processes found each for itself, and returns for each the largest that any of them found."""


def budget_for(
    batch_tokens: int | Literal["auto"],
    device: torch.device,
    *,
    share: float = 1.0,
    ran_out: int = 0,
    agreed: Agreed = tuple,
) -> Budget:
    """Return the budget that a job asks for; see `MemoryBudget`."""
    if batch_tokens == "auto":
        return MemoryBudget(device, share=share, ran_out=ran_out, agreed=agreed)
    return TokenBudget(batch_tokens).halved(ran_out)


class MemoryBudget:
    """Makes micro-batches as large as memory allows, up to a size beyond which they get no faster."""

    def __init__(self, device: torch.device, *, share: float = 1.0, ran_out: int = 0, agreed: Agreed = tuple) -> None:
        """Allow micro-batches to take memory.

        Args:
            device: where the model is.
            share: the part of the device, or of the machine, that is for this process.
            ran_out: how often memory ran out all the same; each time halves what is taken.
            agreed: where processes share a model's weights they must form the same micro-batches, so they agree.
        """
        self._device = device
        self._share = share
        self._ran_out = ran_out
        self._agreed = agreed
        self._tokens = TokenBudget(MOST_TOKENS.get(device.type, MOST_TOKENS["cpu"]))
        self._models: dict[str, MemoryModel] = {}
        self._pass_tokens: float | None = None

    def limit(self, passes: Passes, group: MethodGroup) -> MemoryLimit:
        """Return the limit for a group of methods; the first time, measure what they take, and what a pass costs."""
        # By value: parameters of methods have no hash.
        key = repr(group.methods)
        if key not in self._models:
            self._models[key] = MemoryModel(*self._agreed(astuple(measure(passes, group))))
        if passes.padded:
            if self._pass_tokens is None:
                (self._pass_tokens,) = self._agreed([pass_tokens(passes.model)])
            passes.pass_tokens = round(self._pass_tokens)
        (least,) = self._agreed([-float(free_bytes(self._device, share=self._share))])
        room = min(-SHARE * least, MOST_BYTES.get(self._device.type, -least))
        return MemoryLimit(self._models[key], room / 2**self._ran_out, self._tokens, passes.padded)

    def ran_out_at(self, batch: Sequence[EncodedPair]) -> bool:
        """Allow at most half of a micro-batch that did not fit from now on; return whether that is less than before."""
        return self._tokens.ran_out_at(batch)

    def halved(self, times: int) -> MemoryBudget:
        """Return a budget of less memory; what methods take need not be measured again."""
        if not times:
            return self
        budget = MemoryBudget(self._device, share=self._share, ran_out=self._ran_out + times, agreed=self._agreed)
        budget._models, budget._tokens = self._models, self._tokens.halved(times)
        budget._pass_tokens = self._pass_tokens
        return budget


def measure(passes: Passes, group: MethodGroup) -> MemoryModel:
    """Measure what scoring by a group of methods takes."""
    model = passes.model
    measured = _differentiating(group)

    def score(n_pairs: int) -> None:
        pairs = _made_up(model, n_pairs)
        passes.begin(pairs)
        passes.prepare(pairs)
        measured.score(passes, pairs, batch_tokens=suffix_tokens(pairs))

    measured_pairs = MEASURED_PAIRS.get(model.device.type, MEASURED_PAIRS["cpu"])
    small, large = (peak_bytes(model.device, partial(score, n_pairs)) for n_pairs in measured_pairs)
    tokens = [suffix_tokens(_made_up(model, n_pairs)) for n_pairs in measured_pairs]
    slope = max(0.0, (large - small) / (tokens[1] - tokens[0]))
    dimensions, item = model.dimensions, torch.finfo(model.module.dtype).bits // 8
    key_bytes = 2.0 * dimensions.n_layers * dimensions.n_kv_heads * dimensions.head_dim * item / model.shards
    # A padded row has a copy of its prefix's keys and values, and one for every query head that they serve.
    copies = 1 + dimensions.n_heads / dimensions.n_kv_heads if passes.padded else 1
    all_logits = not all(metric_entry(method.metric).of_answers_alone for method in group.methods)
    return MemoryModel(
        fixed=max(0.0, small - slope * tokens[0]),
        suffix_token=slope,
        prefix_token=key_bytes * copies,
        # In the model's precision and, for a probability, in float32 with its gradient.
        row=dimensions.d_vocab * (item + 3.0 * FLOAT_BYTES) if all_logits or model.sharded else 0.0,
    )


def pass_tokens(model: LoadedModel, *, now: Callable[[], float] = time.perf_counter) -> float:
    """Measure what a pass costs whatever it computes, in positions: the time of none, over the time of one more.

    The line through the times of a small and a large pass, the best of some each; at most as many positions as a
    micro-batch may have, which is what a GPU that is busy with neither gets.
    """
    most = MOST_TOKENS.get(model.device.type, MOST_TOKENS["cpu"])
    length = min(_TIMED_LENGTH, model.dimensions.max_tokens)
    rows = [1, max(2, most // 32 // length)]
    small, large = (min(_seconds(model, n, length, now) for _ in range(_TIMED_PASSES)) for n in rows)
    slope = (large - small) / ((rows[1] - rows[0]) * length)
    return min(float(most), max(0.0, small / slope - length)) if slope > 0 else float(most)


def _seconds(model: LoadedModel, n_rows: int, length: int, now: Callable[[], float]) -> float:
    ids = torch.zeros(n_rows, length, dtype=torch.long, device=model.device)
    started = now()
    with torch.no_grad():
        model.module(ids, use_cache=False, logits_to_keep=1).logits[0, -1, 0].item()  # waits for it
    return now() - started


def _differentiating(group: MethodGroup) -> MethodGroup:
    """Return what is measured for a group: itself, or attribution patching where it computes no gradient.

    A position takes less without a graph, and to measure every replacement would take long. The metric is one that
    works on any pair; what others take of all logits is counted apart.
    """
    if group.differentiates:
        methods = tuple(
            replace(
                method,
                metric=MEASURED_METRIC,
                reference=None,
                parameters={**method.parameters, **group.measured_with},
            )
            for method in group.methods
        )
        return replace(group, methods=methods, whole_answers=False)
    return group_methods(
        [MethodSpec(id=method.id, kind=MEASURED_KIND, components=method.components) for method in group.methods]
    )[0]


def _made_up(model: LoadedModel, n_pairs: int) -> list[EncodedPair]:
    """Return pairs without anything in common but a prefix."""
    n_tokens = min(_PREFIX + _SUFFIX, model.dimensions.max_tokens)
    vocabulary = model.dimensions.d_vocab

    def prompt(number: int) -> tuple[int, ...]:
        start = tuple(range(1, _PREFIX + 1))
        return start + tuple((7 + 31 * number + 13 * position) % vocabulary for position in range(n_tokens - _PREFIX))

    return [
        EncodedPair(
            pair_id=-1 - number,
            clean=prompt(2 * number),
            corrupted=prompt(2 * number + 1),
            answers=(1,),
            wrong_answers=(2,),
            first_difference=min(_PREFIX, n_tokens - 1),
            roles=(None,) * n_tokens,
            template=None,
            group=None,
        )
        for number in range(n_pairs)
    ]


def peak_bytes(device: torch.device, work: Callable[[], Any]) -> int:
    """Return by how much the tensors that exist at once grow at most while ``work`` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return int(torch.cuda.max_memory_allocated(device)) - before
    with _TensorBytes() as counted:
        work()
    peak: int = counted.peak
    return peak


class _TensorBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Counts the bytes of tensors that operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.peak: int = 0
        self._counted: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A method does this ten thousands of times: the less of it, the sooner a worker is at work.
        found = func(*args, **(kwargs or {}))
        made = list(_storages(found))
        if made:
            # What an operation takes was there before: weights, of which it may return a view.
            given = {storage._cdata for storage in _storages((args, kwargs))}
            for storage in made:
                if storage._cdata not in given:
                    self._count(storage)
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, n_bytes = storage._cdata, storage.nbytes()
        if key in self._counted:
            return
        self._counted[key] = weakref.ref(storage, lambda _: self._free(key, n_bytes))
        self.now += n_bytes
        self.peak = max(self.peak, self.now)

    def _free(self, key: int, n_bytes: int) -> None:
        del self._counted[key]
        self.now -= n_bytes


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    """Yield what holds the tensors among the arguments or results of an operation."""
    if isinstance(values, torch.Tensor):
        yield values.untyped_storage()
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _storages(value)
    elif isinstance(values, dict):
        for value in values.values():
            yield from _storages(value)


def free_bytes(device: torch.device, *, share: float = 1.0) -> int:
    """Return how much memory this process may still take on a device.

    Args:
        device: of the model.
        share: which part of a GPU it has, or of a machine's memory.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device)
        unused = held - torch.cuda.memory_allocated(device)
        return int(min(float(free + unused), share * total - held + unused))
    limits = [_available(Path("/proc/meminfo")), *_cgroup_room(Path("/sys/fs/cgroup"))]
    known = [limit for limit in limits if limit is not None]
    return int(share * min(known)) if known else 4 * GIB


def _available(meminfo: Path) -> int | None:
    """Return what the kernel says can be had without swapping."""
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None


def _cgroup_room(root: Path) -> list[int]:
    """Return what the limits of a container leave, by version 2 or 1 of its interface."""
    rooms = []
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most = (root / limit).read_text(encoding="ascii").strip()
            now = int((root / used).read_text(encoding="ascii"))
            stat = (root / limit).with_name("memory.stat").read_text(encoding="ascii")
        except (OSError, ValueError):
            continue
        if most == "max":
            continue
        # Pages of files that nobody reads any more are given back when memory is short.
        reclaimable = [int(line.split()[1]) for line in stat.splitlines() if line.split()[0] == cache]
        rooms.append(int(most) - now + sum(reclaimable))
    return rooms
