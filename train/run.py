"""Trains a MultiGrain, measures it and exports it: python train/run.py --preset demo.

The same command after Ctrl-C, a crash or `kill -9` goes on where the run was.
"""

import sys
from pathlib import Path

from jsonargparse import ActionConfigFile, ArgumentParser

# a checkout works as it is: the rooms beside this one are importable
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mg_keras.errors import UserError
from mg_keras.programs import import_tensorflow, run_program, with_preset
from mg_keras.training.config import TrainConfig

HERE = Path(__file__).resolve().parent


def main():
    """Arguments, then every stage of a run."""
    arguments, preset = with_preset(sys.argv[1:], HERE / "presets")
    parser = ArgumentParser(prog="train/run.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile, help="a YAML file of settings")
    parser.add_argument("--preset", help=f"settings by name: {', '.join(sorted(presets()))}")
    parser.add_argument("--run", help="the run's folder; default: runs/<preset>")
    parser.add_argument("--strategy", default="mirrored", help="mirrored (all GPUs), multiworker (TF_CONFIG) or single")
    parser.add_class_arguments(TrainConfig)
    options = parser.parse_args(arguments)
    values = {name: value for name, value in vars(options).items() if name in TrainConfig.__dataclass_fields__}
    train_and_finish(TrainConfig(**values), options.run or f"runs/{preset or 'run'}", options.strategy)


def presets():
    """The names of the presets there are."""
    return [path.stem for path in (HERE / "presets").glob("*.yaml")]


def train_and_finish(config, folder, strategy_name):
    """Trains, chooses p*, fits the whitening, measures and exports; what is done already is not done again."""
    import_tensorflow()
    from mg_keras.training import stages
    from mg_keras.training.loop import Stopped, Trainer, enable_determinism, make_strategy
    from mg_keras.training.runs import Run

    strategy = make_strategy(strategy_name)
    enable_determinism(config)
    run = Run.start(folder, config)
    print(f"run {run.path}: {config.trunk} on {config.data}, strategy {strategy_name}", flush=True)
    source = stages.open_source(config)
    print(
        f"{len(source.class_names)} classes, {len(source.train)} training and {len(source.val)} validation photos",
        flush=True,
    )
    trainer = Trainer(run, source, strategy)
    if trainer.is_chief:
        run.save_class_names(source.class_names)
    if trainer.restore():
        print(f"going on from step {trainer.state.step}", flush=True)
    try:
        trainer.train()
    except Stopped as stopped:
        print(f"saved at step {trainer.state.step}; the same command goes on from there", file=sys.stderr)
        sys.exit(128 + stopped.number)
    if trainer.is_chief:
        finish(run, source)


def finish(run, source):
    """All that comes after training."""
    from rich.console import Console

    from export.saved_model import export_run, usage
    from mg_keras.evaluation.report import scores_table
    from mg_keras.training import stages

    p_star = stages.choose_p_star(run, source)
    print("p* " + ", ".join(f"{size} px: {value}" for size, value in p_star.items()), flush=True)
    try:
        print(f"whitening fitted on {stages.fit_whitening(run, source)}", flush=True)
    except UserError as error:
        # hours of training must not end without a model: the descriptor is exported as it is
        print(f"not whitened: {error}", file=sys.stderr)
    metrics = stages.evaluate(run, source)
    Console().print(scores_table(metrics))
    print(usage(export_run(run, run.path / "saved_model")))
    print(f"\nLook at {run.path}/: retrieval.png, scores.png, p_star.png, curves.png; figures in metrics.json")
    if (run.path / "bad_images.txt").exists():
        count = len((run.path / "bad_images.txt").read_text(encoding="utf-8").splitlines())
        print(f"{count} photos could not be used: see {run.path / 'bad_images.txt'}")


if __name__ == "__main__":
    run_program(main)
