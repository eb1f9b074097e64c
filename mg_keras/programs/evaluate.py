"""Measures a run, or an exported SavedModel, on benchmarks: mg-keras evaluate --run runs/demo.

With a benchmark's folder it gives the paper's number: --benchmarks holidays=PATH,ukb=PATH --resolutions 224,500,800.
The tables have the layout of the paper's Tables 2 and 3, with the paper's figures beside. --benchmarks
categories=PATH,probe=PATH measures on photos of other classes, at each level of their labels. Writes metrics.json,
scores.png, retrieval.png and, of labels of two levels, categories.png into the run.
"""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mg_keras.errors import UserError
from mg_keras.evaluation.folders import NAMES, Options
from mg_keras.files import check_file, printable_name
from mg_keras.pretrained import PACKAGED
from mg_keras.programs.common import list_of, number, print_table, stage_arguments
from mg_keras.quiet import import_tensorflow

OWN = ("classes", "in_aug", "copies", "views", "categories", "probe")
"""Benchmarks of a run's own photos."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments, the measures, and the tables."""

    def more(parser):
        parser.add_argument(
            "--model", type=str, help="a SavedModel to measure in place of a run, or package: that of mg_keras"
        )
        parser.add_argument(
            "--benchmarks",
            type=list_of(str),
            help=f"of {_listed(OWN)} (the run's own photos) and NAME=PATH of {_listed(NAMES)}; default: the run's own, "
            "without probe, and without categories where labels are of one level",
        )
        parser.add_argument(
            "--comparison", type=bool, default=True, help="rows of average pooling and R-MAC on the same trunk too"
        )
        parser.add_argument(
            "--rotations", type=str, help="file that turns Holidays photos upright: NAME DEGREES a line"
        )
        parser.add_argument("--distractors", type=str, help="folder of photos to hide the copies among")
        parser.add_argument(
            "--neighbors",
            type=number(int, at_least=1),
            default=Options.neighbors,
            help="that vote in categories and probe",
        )
        parser.add_argument(
            "--neighbor_temperature",
            type=number(float, above=0),
            default=Options.neighbor_temperature,
            help="of their votes, exp(cosine / temperature)",
        )
        parser.add_argument("--out", type=str, help="with --model: the file that gets the figures, as JSON")

    options = stage_arguments("mg-keras evaluate", __doc__, arguments, more, run_required=False)
    if bool(options.run) == bool(options.model):
        raise UserError("give either --run (a run's folder) or --model (an exported SavedModel)")
    options.benchmarks = options.benchmarks and _whole(options.benchmarks)
    if options.model and options.data:
        raise UserError("--data names the photos of a --run; a SavedModel is measured on --benchmarks NAME=PATH")
    if options.model and options.checkpoint != "last":
        raise UserError("--checkpoint is one of a --run; a SavedModel is what it was exported from")
    if options.run and options.out:
        raise UserError("--out is for --model: the figures of a run go into its metrics.json")
    if options.out:
        check_file(options.out)
    import_tensorflow()
    if options.run:
        evaluate_run(options)
    else:
        evaluate_model(options)


def _listed(names):
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _whole(specs):
    """Benchmarks, of which commas between the columns of labels made several."""
    found = []
    for spec in specs:
        if found and "?label=" in found[-1] and "=" not in spec and spec not in OWN:
            found[-1] += f",{spec}"
        else:
            found.append(spec)
    return found


def evaluate_run(options: Namespace) -> None:
    """A run: its own photos and any benchmark."""
    from mg_keras.evaluation.records import of_benchmarks
    from mg_keras.evaluation.tables import scores_table
    from mg_keras.programs import scores, stages

    run, source = stages.open_run(options.run, options.resolutions, options.checkpoint, options.data)
    benchmarks = scores.open_benchmarks(run, source, options.benchmarks, _needs(options))
    embedder = stages.embedder_of(run, also=stages.COMPARISON if options.comparison else ())
    for note in stages.complete(run, source, embedder):
        print(note, flush=True)
    metrics = scores.evaluate(run, source, benchmarks, options.comparison, embedder)
    # the file keeps what was measured before
    metrics = of_benchmarks(metrics, {benchmark.name for benchmark in benchmarks}, run.settings.resolutions)
    if metrics["resolutions"]:
        print_table(scores_table(metrics))
    show_tables(metrics)
    print(f"written: {run.results.folder / 'metrics.json'}, and the pictures beside it")


def evaluate_model(options: Namespace) -> None:
    """A SavedModel, or the model in the package: any benchmark with a folder of its own."""
    from mg_keras.export.opened import Exported
    from mg_keras.files import atomic_write_json
    from mg_keras.pretrained.packed import PACKAGE, Packed
    from mg_keras.programs.scores import evaluate_exported, evaluate_packed

    asked = options.benchmarks, options.resolutions, _needs(options)
    if options.model == PACKAGED:
        metrics = evaluate_packed(Packed(PACKAGE), *asked)
    else:
        metrics = evaluate_exported(Exported.load(options.model), *asked)
    show_tables(metrics)
    if options.out:
        atomic_write_json(Path(options.out), metrics)
        print(f"written: {options.out}")


def _needs(options):
    """What benchmarks need beside their photos."""
    return Options(options.rotations, options.distractors, options.neighbors, options.neighbor_temperature)


def show_tables(metrics: Mapping[str, Any]) -> None:
    """Tables 2 and 3, and what is to be known about the benchmarks' folders."""
    from mg_keras.evaluation.tables import class_table, levels_tables, retrieval_table

    for table in (class_table(metrics), retrieval_table(metrics), *levels_tables(metrics)):
        if table:
            print_table(table)
    for name, benchmark in metrics["benchmarks"].items():
        print(f"{name}: {benchmark['description']}")
        for warning in benchmark["warnings"]:
            print(f"  note: {warning}")
        if benchmark["unusable"]:
            first = printable_name(benchmark["unusable"][0])
            print(f"  {len(benchmark['unusable']):,} unusable photos count as not found, such as {first}")
