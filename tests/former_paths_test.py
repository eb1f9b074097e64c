"""Modules that scripts of users know by paths of the first release."""

import subprocess
import sys

import pytest

from tests.train.tiny import ROOT


@pytest.mark.slow
def test_modules_are_found_by_their_former_paths():
    script = """
        from export.saved_model import export_run, export_saved_model, usage
        from mg_keras.programs.export import export_run as now
        from mg_keras.runs.run import load_run as loads
        from mg_keras.training.runs import Run, load_run
        from serving.client import Client, GrpcClient, RestClient, ServingError
        assert export_run is now and load_run is loads
    """
    script = "\n".join(line.strip() for line in script.splitlines())
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
