"""What the benchmarks' programs share: how their arguments begin."""

import argparse


def benchmark_parser(name: str, doc: str) -> argparse.ArgumentParser:
    """A parser of the program `python -m benchmarks.NAME`, whose help is its docstring, laid out as it stands there."""
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
