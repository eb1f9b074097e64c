"""Every public function and method of the package says what it takes and what it gives."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "mg_keras"
# of the methods with underscores, those that callers use by way of the class
CALLED = ("__init__", "__call__")


def is_public(name):
    return not name.startswith("_") or name in CALLED


def public_functions(body, of_class=False):
    """(node, whether it is a method) of all that is public; what lies within a function or a private class is not."""
    for node in body:
        if isinstance(node, ast.ClassDef) and is_public(node.name):
            yield from public_functions(node.body, of_class=True)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and is_public(node.name):
            yield node, of_class
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from public_functions(ast.iter_child_nodes(node), of_class)


def missing_hints(source):
    """Lines `function: what has no hint`.

    The rule of exceptions: `self` and `cls`, `*args` and `**kwargs` under whatever name, which are passed on or
    refused, and what `__init__` returns.
    """
    for function, is_method in public_functions(ast.parse(source).body):
        given = function.args
        arguments = [*given.posonlyargs, *given.args]
        if is_method and not any(ast.unparse(decorator) == "staticmethod" for decorator in function.decorator_list):
            arguments = arguments[1:]
        without = [argument.arg for argument in [*arguments, *given.kwonlyargs] if argument.annotation is None]
        if function.returns is None and function.name != "__init__":
            without.append("what it returns")
        if without:
            yield f"{function.name}, line {function.lineno}: {', '.join(without)}"


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("def f(a, *, b=1): pass", ["f, line 1: a, b, what it returns"]),
        ("def f(a: int, *args, **kwargs) -> None: pass", []),
        ("class C:\n def __init__(self, a): pass", ["__init__, line 2: a"]),
        ("class C:\n @staticmethod\n def f(a) -> int: pass", ["f, line 3: a"]),
        (
            "class C:\n @classmethod\n def f(cls) -> int: pass\n def __call__(self): pass",
            ["__call__, line 4: what it returns"],
        ),
        ("def _f(a): pass\nclass _C:\n def f(self, a): pass", []),
        ("def f() -> None:\n def g(a): pass", []),
        ("if True:\n def f(): pass", ["f, line 2: what it returns"]),
    ],
)
def test_what_counts_as_missing(source, missing):
    assert list(missing_hints(source)) == missing


def test_all_that_is_public_has_hints():
    missing = {
        path.relative_to(PACKAGE).as_posix(): lines
        for path in sorted(PACKAGE.rglob("*.py"))
        if (lines := list(missing_hints(path.read_text(encoding="utf-8"))))
    }
    assert missing == {}
