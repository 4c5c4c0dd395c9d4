"""``pairs make | import | validate | describe``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attrib_batch.cli.make import OutFile, make
from attrib_batch.cli.named import named_values
from attrib_batch.cli.tokenizer import given_tokenizer
from attrib_batch.errors import ExitCode, RequestError
from attrib_batch.pairs.importing.options import Corrupt, LeadingSpace, Positions  # noqa: TC001 - typer reads them
from attrib_batch.pairs.reading.columns import AnswerKind

app = typer.Typer(
    help="Make, import and check tables of prompt pairs.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(make, name="make")

Table = Annotated[
    str, typer.Argument(metavar="FILE", help="A Parquet table of prompt pairs: a path, s3://, gs:// or hf://datasets/.")
]


@app.command("import")
def import_table(
    source: Annotated[
        str,
        typer.Argument(
            help="CSV, TSV, JSON (lines, an array, an object) or Parquet; also .gz and .zst. A path, s3://, gs://, "
            "hf://datasets/ or https://."
        ),
    ],
    out: OutFile,
    *,
    layout: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help="The layout, of those that `pairs formats` lists; by default known by columns.",
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="OURS=THEIRS", help="Which of the source's columns is which of ours."),
    ] = None,
    answers: Annotated[
        AnswerKind | None,
        typer.Option(
            help="What answers are: texts, whole numbers that are token ids, or texts of which the first token counts."
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Whose token ids or chats they are: a bundled name, a local folder or a Hub id. What lengths are "
            "counted with.",
        ),
    ] = None,
    leading_space: Annotated[
        LeadingSpace | None, typer.Option(help="Put a space before answers that have none, or keep them.")
    ] = None,
    counterfactual: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which of a row's counterfactuals.")
    ] = None,
    corrupt: Annotated[
        Corrupt | None, typer.Option(help="Take the corrupted prompt from another row of the same length.")
    ] = None,
    join: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="The file of the corrupted prompts, by prompt_id or row by row; or that of the verbs."
        ),
    ] = None,
    positions: Annotated[Positions | None, typer.Option(help="Whether token positions count a BOS.")] = None,
    seed: Annotated[int, typer.Option(help="Of --corrupt and --repair.")] = 0,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Turn lists of messages into text by the tokenizer's own template.")
    ] = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Exchange single words for others of the table where prompts are unequal in length."
        ),
    ] = False,
) -> int:
    """Make a table of prompt pairs from a file of a published layout, or one with other column names.

    Rows that cannot become a pair are counted with their reason; exit code 3 if there are any.
    """
    from attrib_batch.pairs.importing.counts import render_counts
    from attrib_batch.pairs.importing.importer import import_pairs
    from attrib_batch.pairs.importing.options import ImportOptions

    named = named_values("--column", "OURS=THEIRS, for example --column clean=prompt", columns or [])
    needs_it = chat_template or repair or corrupt or join or answers is AnswerKind.FIRST_TOKEN
    options = ImportOptions(
        layout=layout,
        columns={theirs: ours for ours, theirs in named},
        answers=answers,
        leading_space=leading_space,
        counterfactual=counterfactual,
        corrupt=corrupt,
        join=join,
        positions=positions,
        tokenizer=None if tokenizer is None else given_tokenizer(tokenizer, needed=bool(needs_it)),
        chat_template=chat_template,
        repair=repair,
        seed=seed,
    )
    imported = import_pairs(source, out, options)
    recipe, counts = imported.recipe, imported.counts
    typer.echo(f"{imported.n_pairs:,} pairs -> {out}")
    typer.echo(f"layout: {recipe.name} ({recipe.explanation})")
    typer.echo(render_counts(counts))
    if imported.answers_look_like_ids:
        typer.echo(
            "warning: all answers are whole numbers and were taken as text; where they are token ids, import them with "
            "--answers ids",
            err=True,
        )
    return int(ExitCode.SOME_FAILED if counts.refused else ExitCode.OK)


@app.command("formats")
def list_formats() -> None:
    """List the layouts that `pairs import` knows, with the columns by which it recognises them."""
    from attrib_batch.pairs.importing.registry import RECIPES

    for recipe in RECIPES.values():
        typer.echo(f"{recipe.name}: {recipe.explanation}\n  columns: {recipe.columns}\n  from: {recipe.published}")


@app.command()
def validate(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A table of prompt pairs; or a job file (YAML), whose tables, models and settings count.",
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="Bundled name, local folder or Hub id; a job file has its own.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Hub revision.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many rows.")] = None,
    *,
    prepend_bos: Annotated[bool, typer.Option(help="As in the job file.")] = False,
    allow_boundary: Annotated[
        bool, typer.Option("--allow-boundary", help="As allow_boundary: true in the job file.")
    ] = False,
    bos_token: Annotated[
        str | None, typer.Option(metavar="TOKEN", help="As in the job file: what --prepend-bos puts there.")
    ] = None,
    whole_answers: Annotated[
        bool,
        typer.Option(
            "--whole-answers", help="Take answers of several tokens, as metric sequence_logprob_diff reads them."
        ),
    ] = False,
    clean_alone: Annotated[
        bool,
        typer.Option("--clean-alone", help="Leave corrupted prompts out, as reference zero and reference mean do."),
    ] = False,
) -> int:
    """Tokenise every pair and count, per reason, those that cannot be scored; exit code 3 if there are any.

    Warnings about pairs that can be scored do not change the exit code. With a job file, what its models cannot do is
    refused as `run` would refuse it.
    """
    if Path(file).suffix.lower() in {".yaml", ".yml"}:
        if any((model, revision, limit, prepend_bos, allow_boundary, bos_token, whole_answers, clean_alone)):
            raise RequestError(f"{file} is a job file: models and settings are those in it; leave the options out")
        return _validate_job(file)
    if bos_token and not prepend_bos:
        raise RequestError("--bos-token is what --prepend-bos prepends; leave it out, or say --prepend-bos too")
    if model is None:
        raise RequestError(f"pairs validate {file}: name the model whose tokenizer counts, with --model")

    from attrib_batch.models.checks.vocabulary import check_vocabulary
    from attrib_batch.models.load import load_tokenizer, read_dimensions
    from attrib_batch.pairs.reading.reader import PairTable
    from attrib_batch.pairs.validate import render_validation
    from attrib_batch.pairs.validate import validate as validate_table
    from attrib_batch.spec import ModelSpec

    pairs = PairTable.open(file, limit, corrupted=not clean_alone)
    job = ModelSpec(id=model, revision=revision, prepend_bos=prepend_bos, bos_token=bos_token)
    tokenizer, dimensions = load_tokenizer(job), read_dimensions(job)
    check_vocabulary(job, tokenizer, dimensions.d_vocab)
    pairs.form.notes.check(pairs.path, job.id, tokenizer)
    report = validate_table(
        pairs,
        tokenizer,
        prepend_bos=prepend_bos,
        max_tokens=dimensions.max_tokens,
        vocabulary_size=dimensions.d_vocab,
        allow_boundary=allow_boundary,
        bos_token=bos_token,
        whole_answers=whole_answers,
        against_corrupted=not clean_alone,
    )
    typer.echo(render_validation(report))
    return int(ExitCode.OK if report.ok else ExitCode.SOME_FAILED)


def _validate_job(path: str) -> int:
    from attrib_batch.execution.planning.validate import validate_job
    from attrib_batch.pairs.validate import render_validation
    from attrib_batch.spec import load_spec

    ok = True
    for model, dataset, report in validate_job(load_spec(path)):
        typer.echo(f"{model} x {dataset}: {render_validation(report)}\n")
        ok = ok and report.ok
    return int(ExitCode.OK if ok else ExitCode.SOME_FAILED)


@app.command()
def describe(table: Table) -> None:
    """Count pairs by task, template and length; needs no model."""
    from attrib_batch.pairs.describe import describe as describe_table
    from attrib_batch.pairs.describe import render_description
    from attrib_batch.pairs.reading.reader import PairTable

    typer.echo(render_description(describe_table(PairTable.open(table, corrupted=False))))
