"""``python -m benchmarks.summaries VARIANT RUN [OTHER]``: summarise or compare once, and print seconds and peak memory.

A module of its own: the process must hold nothing but what the variant needs.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

SQL = """
create or replace temp view rows as
  select scores.pair_id, component, layer, head, role, position, score::double as score,
         position = n_tokens - 1 as is_last, coalesce("group", -1 - scores.pair_id) as unit
  from read_parquet('{scores}') scores join read_parquet('{baselines}') pairs on scores.pair_id = pairs.pair_id;
create or replace temp table by_role as
  select pair_id, unit, component, layer, head, coalesce(role, '') as role, sum(score) as value,
         sum(score) filter (is_last) as last
  from rows group by all;
create or replace temp view by_head as
  select pair_id, unit, component, 'role' as scope, role, layer, head, value from by_role where role <> ''
  union all
  select pair_id, unit, component, 'last', '', layer, head, sum(last) from by_role group by all
  union all
  select pair_id, unit, component, 'all', '', layer, head, sum(value) from by_role group by all;
create or replace temp view by_position as
  select pair_id, unit, component, 'position' as scope, '' as role, layer, position as head, sum(score) as value
  from rows group by all;
create or replace temp table units as
  select component, scope, role, layer, head, unit, sum(value) as total, count(*) as k, sum(value * value) as squares,
         min(value) as lowest, max(value) as highest
  from (from by_head union all from by_position) group by all;
create or replace temp table statistics as
  with means as (
    select component, scope, role, layer, head, sum(total) / sum(k) as mean, sum(k) as n, count(*) as g,
           sum(squares) as all_squares, min(lowest) as least, max(highest) as most
    from units group by all)
  select units.component, units.scope, units.role, units.layer, units.head, any_value(mean) as mean,
         sqrt((any_value(all_squares) - any_value(n) * any_value(mean) ** 2) / (any_value(n) - 1)) as std,
         sqrt(any_value(g) / (any_value(g) - 1) * sum((total - k * mean) ** 2)) / any_value(n) as sem,
         any_value(least) as lowest, any_value(most) as highest
  from units join means using (component, scope, role, layer, head) group by all;
"""


def by_duckdb(out: Path) -> Any:
    """Compute the statistics by SQL; return a connection that holds them."""
    import duckdb

    connection = duckdb.connect(config={"threads": 2, "memory_limit": "8GB"})
    connection.execute(SQL.format(**{name: f"{out}/{name}/**/*.parquet" for name in ("scores", "baselines")}))
    return connection


def compute(what: str, out: str, other: str | None = None) -> float:
    """Compute one variant; return its seconds."""
    if other is not None:
        import scipy.stats  # noqa: F401 - not what is timed

        from attrib_batch.analysis import compare

        started = time.perf_counter()
        if not compare(out, {}, {}, other).get_column("paired").all():
            raise SystemExit("the runs have no pairs in common")
        return time.perf_counter() - started
    if what == "duckdb":
        import duckdb  # noqa: F401 - not what is timed

        started = time.perf_counter()
        by_duckdb(Path(out)).execute("select count(*), sum(mean), sum(sem) from statistics").fetchall()
        return time.perf_counter() - started
    from attrib_batch.analysis import summarize

    started = time.perf_counter()
    summarize(out)
    return time.perf_counter() - started


def peak_gigabytes() -> float:
    """Return the process's peak resident memory; not what getrusage says, which includes who started it."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024 / 1e9


if __name__ == "__main__":
    print(compute(*sys.argv[1:]), peak_gigabytes())
