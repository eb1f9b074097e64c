"""Chooses the test exponent p* of a run for each resolution: mg-keras choose-p-star --run runs/demo.

By cross-validation on IN-aug over p* = 1 to 10, or by fine-tuning p alone on the training photos. Of exponents whose
scores are within a standard error of the best, the one nearest to that of training is taken. Writes p_star.json
and p_star.png into the run; with --sweep true also class accuracy by exponent, as sweep.json and sweep.png.
"""

import dataclasses
from collections.abc import Sequence

from mg_keras.data.augmentations import NAMES
from mg_keras.finishing.settings import METHODS, Choosing
from mg_keras.poolings import MOST_EXPONENT
from mg_keras.programs.common import list_of, number, stage_arguments
from mg_keras.quiet import import_tensorflow


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments, the choice, and what was chosen."""

    def more(parser):
        parser.add_argument(
            "--method",
            default=Choosing.method,
            choices=list(METHODS),
            help="with both, the p* in use is cross-validation's and the fine-tuned one is noted beside",
        )
        parser.add_argument(
            "--exponents",
            type=list_of(float, above=0, at_most=MOST_EXPONENT),
            default=list(Choosing.exponents),
            help="those that cross-validation tries, such as 1,2,3.5",
        )
        at_least_one = number(int, at_least=1)
        parser.add_argument(
            "--per_class",
            type=at_least_one,
            default=Choosing.per_class,
            help="photos of each class to fine-tune on, at most",
        )
        parser.add_argument("--epochs", type=at_least_one, default=Choosing.epochs, help="of fine-tuning")
        parser.add_argument(
            "--augmentation",
            default=Choosing.augmentation,
            choices=list(NAMES),
            help="the recipe of IN-aug's versions; the paper's is full",
        )
        parser.add_argument(
            "--tolerance",
            type=number(float, at_least=0),
            default=Choosing.tolerance,
            help="standard errors below the best within which an exponent is as good; 0: the best, as the paper has it",
        )
        parser.add_argument(
            "--sweep", type=bool, default=Choosing.sweep, help="measure the validation photos at every exponent, too"
        )

    options = stage_arguments("mg-keras choose-p-star", __doc__, arguments, more)
    import_tensorflow()
    from rich.console import Console

    from mg_keras.evaluation.scores import METRICS
    from mg_keras.evaluation.tables import sweep_table
    from mg_keras.programs import stages
    from mg_keras.runs.descriptor import notes

    run, source = stages.open_run(options.run, options.resolutions, options.checkpoint, options.data)
    how = Choosing(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Choosing)})
    chosen = stages.choose_p_star(run, source, how)
    choices = run.results.choices
    best = stages.cross_validated(choices)
    if options.sweep:
        Console().print(sweep_table(run.results.exponent_sweep, best, stages.fine_tuned(choices)))
    for size, exponent in sorted(chosen.items()):
        line = f"{size} px: p* = {exponent:.4g}"
        if size in best:
            score = METRICS["instance"].text(choices[size].scores[best[size]])
            line += f"; cross-validation {best[size]:g} (IN-aug {score} of 5)"
        if learnt := choices[size].fine_tuned:
            line += "; fine-tuning {p_star:.4g} (from {initial:g}, on {photos} photos)".format(**learnt)
        print(line)
    written = ["p_star.json", "p_star.png"] if best else ["p_star.json"]
    written += ["sweep.json", "sweep.png"] if options.sweep else []
    print(f"written: {', '.join(str(run.results.folder / name) for name in written)}")
    for note in notes(run, chosen, chosen):
        print(note)
