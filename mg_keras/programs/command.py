"""The command `mg-keras VERB ...`: every program of this room under one name."""

import importlib
from collections.abc import Sequence

import mg_keras
from mg_keras.errors import UserError
from mg_keras.programs.common import given, run_program, unknown

VERBS = {
    "train": "train a network, measure it and export it",
    "workers": "train on several workers, and start them again where one is lost",
    "ablation": "train and measure presets with several seeds, and print their table",
    "import-weights": "look into a PyTorch checkpoint, or make a run of it",
    "imagenet": "make a run of EfficientNet-Lite0 as it was trained on ImageNet",
    "choose-p-star": "choose the test exponent p* of a run for each resolution",
    "whiten": "fit the whitening of a run's descriptors",
    "evaluate": "measure a run or a SavedModel on classes, instances and copies",
    "embed": "write the descriptors of a folder of photos",
    "push": "send descriptors into a vector database: Milvus or Qdrant",
    "search": "find photos of a folder by a photo, or by a class",
    "index": "make an index of millions of descriptors, or plan one",
    "duplicates": "find the photos of a folder that are there twice",
    "export": "write a run as a SavedModel",
    "pack": "pack a run into a small folder of half-precision weights",
    "serve": "serve a SavedModel on this machine, as TF Serving does",
}
"""Verb -> what it does; its program is the module of this room with that name."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Hands the arguments after the verb to its program.

    Raises:
        UserError: there is no such verb; the message names the nearest one.
    """
    verb, *rest = given(arguments) or [None]
    if verb == "--version":
        print(f"mg-keras {mg_keras.__version__}")
    elif verb in ("-h", "--help"):
        print(overview())
    elif verb is None:
        raise UserError(f"a verb is missing: one of {', '.join(VERBS)}; mg-keras --help says what each does")
    elif verb not in VERBS:
        raise UserError(f"{unknown('verb', verb, list(VERBS))}; mg-keras --help lists them")
    else:
        importlib.import_module(f"mg_keras.programs.{verb.replace('-', '_')}").main(rest)


def overview() -> str:
    """The verbs, a line each."""
    width = max(map(len, VERBS))
    return "\n".join(
        [
            "usage: mg-keras VERB [--option value ...]",
            "",
            "One image embedding for classes, instances and copies (MultiGrain).",
            "",
            *(f"  {verb:{width}}  {line}" for verb, line in VERBS.items()),
            "",
            "mg-keras VERB --help says what a verb takes; mg-keras --version, which release this is.",
        ]
    )


def run() -> None:
    """What the installed command calls."""
    run_program(main)
