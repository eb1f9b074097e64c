"""The order of the rooms (docs/decisions.md): who may know whom, imports within functions included."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "mg_keras"

# each room may import those before it and itself; a module beside the rooms is a room of its own
ROOMS = (
    *(
        "errors",
        "files",
        "limits",
        "processor",
        "progress",
        "safe_pickle",
        "quiet",
        "signals",
        "http_server",
        "poolings",
        "preparations",
        "whitening_formulas",
        "metric",
        "checkpoints",
    ),
    *("layers", "models", "objectives", "data", "embedding", "databases", "evaluation", "pretrained"),
    *("multigrain", "finishing", "runs", "training", "export", "search", "serving", "engines", "loading", "programs"),
)


def modules():
    return {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def imported(path, known):
    """The project's modules that a file imports, at its top or within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in names}
    return {name for name in found if name in known and name != "mg_keras"}


KNOWN = modules()
IMPORTS = {name: imported(path, KNOWN) for name, path in KNOWN.items() if name != "mg_keras"}


def room_of(name):
    # what `python -m` starts is a program, wherever it lies
    return "programs" if name.endswith(".__main__") else name.split(".")[1]


def test_every_module_is_in_a_room():
    assert {room_of(name) for name in IMPORTS} <= set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_knows_only_those_before_it(room):
    allowed = ROOMS[: ROOMS.index(room) + 1]
    wrong = sorted(
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others
        if room_of(name) == room and room_of(other) not in allowed
    )
    assert wrong == []


def test_no_module_imports_itself_through_others():
    try:
        list(TopologicalSorter(IMPORTS).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(error.args[1]))


def test_a_network_knows_layers_alone():
    known = {room_of(other) for name, others in IMPORTS.items() if room_of(name) == "models" for other in others}
    assert known <= {"errors", "poolings", "preparations", "layers", "models"}
