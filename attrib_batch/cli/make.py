"""``pairs make``: one command for each generator of pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from attrib_batch.cli.examples import example
from attrib_batch.pairs.making.generators.registry import GENERATORS
from attrib_batch.pairs.making.ioi import Counterfactual

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from attrib_batch.pairs.making.generator import Generator

make = typer.Typer(help="Generate pairs.", no_args_is_help=True)

OutFile = Annotated[
    str, typer.Option("--out", metavar="FILE", help="The Parquet file to write: a path, s3:// or gs://bucket/file.")
]
Count = Annotated[int, typer.Option(min=1, help="Rows to write, mirrors counted.")]
_MIRROR = typer.Option(
    None,
    "--mirror/--no-mirror",
    help="Follow each pair by the pair with clean and corrupted exchanged; by default where there is one.",
)
Seed = Annotated[int, typer.Option(help="The same seed gives the same bytes.")]


@make.command("ioi", epilog=example("pairs make ioi --count 1000 --seed 0 --out ioi.parquet"))
def make_ioi(
    out: OutFile,
    count: Count = 1000,
    seed: Seed = 0,
    counterfactual: Annotated[
        Counterfactual, typer.Option(help="What the corrupted prompt changes.")
    ] = Counterfactual.S2_TO_IO,
    *,
    mirror: Annotated[
        bool, typer.Option(help="Follow each pair by the pair with clean and corrupted exchanged.")
    ] = True,
) -> None:
    """Make pairs of indirect object identification: "... John and Mary ...; John gave a drink to" -> " Mary"."""
    from attrib_batch.pairs.making.ioi import generate_ioi
    from attrib_batch.pairs.making.writer import write_pairs

    written = write_pairs(out, generate_ioi(count, seed, counterfactual, mirror=mirror))
    typer.echo(f"{written:,} pairs -> {out}")


def _command(generator: Generator) -> Callable[..., None]:
    """Return the command of a generator, with the names of its own choices as the help."""

    def command(
        out: OutFile,
        *,
        count: Count = 1000,
        seed: Seed = 0,
        counterfactual: str | None = typer.Option(None, help=_choices(generator.counterfactuals)),
        mirror: bool | None = _MIRROR,
    ) -> None:
        _write(generator, out, count=count, seed=seed, counterfactual=counterfactual, mirror=mirror)

    def command_with_variants(
        out: OutFile,
        *,
        count: Count = 1000,
        seed: Seed = 0,
        counterfactual: str | None = typer.Option(None, help=_choices(generator.counterfactuals)),
        variant: str | None = typer.Option(
            None, f"--{generator.variant_option}", metavar="NAME", help=_choices(generator.variants)
        ),
        mirror: bool | None = _MIRROR,
    ) -> None:
        _write(generator, out, count=count, seed=seed, counterfactual=counterfactual, variant=variant, mirror=mirror)

    return command_with_variants if generator.variant_option else command


def _choices(named: Mapping[str, str]) -> str:
    return " ".join(f"{name}: {sentence}" for name, sentence in named.items())


def _write(
    generator: Generator,
    out: str,
    *,
    count: int,
    seed: int,
    counterfactual: str | None,
    mirror: bool | None,
    variant: str | None = None,
) -> None:
    from attrib_batch.pairs.making.generator import generate
    from attrib_batch.pairs.making.writer import write_pairs

    written = write_pairs(out, generate(generator, count, seed, counterfactual, variant, mirror=mirror))
    typer.echo(f"{written:,} pairs -> {out}")


for _generator in GENERATORS.values():
    make.command(
        _generator.name,
        help=f"Make pairs of {_generator.explanation}. {_generator.paper}.",
        epilog=example(f"pairs make {_generator.name} --count 1000 --out {_generator.name}.parquet"),
    )(_command(_generator))
