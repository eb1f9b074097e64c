"""The command mg-keras: its verbs, and what it says of others."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import mg_keras
from mg_keras.errors import UserError
from mg_keras.programs import command
from mg_keras.programs.common import PRESETS
from tests.train.tiny import ROOT, finish

PROGRAMS = Path(command.__file__).parent


def mg_keras_command(*arguments, **options):
    start = [sys.executable, "-m", "mg_keras", *arguments]
    return subprocess.Popen(start, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_every_program_has_a_verb_and_a_verb_its_program():
    programs = {path.stem for path in PROGRAMS.glob("*.py") if "def main(" in path.read_text()} - {"command"}
    assert {verb.replace("-", "_") for verb in command.VERBS} == programs


@pytest.mark.parametrize("verb", command.VERBS)
def test_a_verb_says_what_it_takes(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main([verb, "--help"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: mg-keras {verb} ")


def test_the_overview_is_there_without_tensorflow():
    code = "import sys; sys.argv[1:] = ['--help']; from mg_keras.programs.command import run; run()"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}; assert not {{'tensorflow', 'keras', 'numpy'}} & set(sys.modules)"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    status, output, errors = finish(process)
    assert (status, errors) == (0, "")
    for verb, line in command.VERBS.items():
        assert f"  {verb} " in output
        assert line in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown verb 'trian', did you mean 'train'?"),
        (["choose_p_star"], "unknown verb 'choose_p_star', did you mean 'choose-p-star'?"),
        (["xyz"], "unknown verb 'xyz'; known: train, "),
        ([], "a verb is missing: one of train, "),
        (["train", "--preset=demos"], "unknown preset 'demos', did you mean 'demo'?"),
        (["train", "--preset=demo", "--preset=grafit"], "--preset is given once, on the command line: grafit would"),
        (["ablation", "--presets=demo", "--seed=3"], "no --seed"),
        (["whiten", "--run=x", "--descriptor=projected", "--dimensions=4"], "--dimensions is of a whitening that is"),
        (["whiten", "--run=x", "--descriptor=projected", "--power=0.5"], "--power is of a whitening that is"),
        (["export", "--run=x"], "out"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(UserError, match=r"^[^\n]*$") as refused:
        command.main(arguments)
    assert message in str(refused.value)


def test_a_preset_in_a_file_of_settings_is_not_passed_over(tmp_path):
    """What is none of its settings would be trained with the defaults, for days."""
    settings = tmp_path / "mine.yaml"
    settings.write_text("preset: demo\nepochs: 3\n")
    with pytest.raises(UserError, match="--preset is given once, on the command line: demo would change nothing"):
        command.main(["train", f"--config={settings}", f"--run={tmp_path}/run"])


def test_a_mistake_is_one_line_and_status_2():
    status, output, errors = finish(mg_keras_command("evaluate", "--run=nowhere", "--model=nothing"))
    assert (status, output) == (2, "")
    assert errors == "error: give either --run (a run's folder) or --model (an exported SavedModel)\n"


def test_it_names_its_release(capsys):
    command.main(["--version"])
    assert capsys.readouterr().out == f"mg-keras {mg_keras.__version__}\n"


def test_what_is_installed_has_the_presets():
    setup = (ROOT / "setup.py").read_text()
    assert '"presets/*.yaml"' in setup
    assert "mg-keras=mg_keras.programs.command:run" in setup
    assert callable(importlib.import_module("mg_keras.programs.command").run)
    assert PRESETS.parent == Path(mg_keras.__file__).parent


@pytest.mark.parametrize("path", [*sorted(ROOT.glob("train/*.py")), ROOT / "export/run.py", ROOT / "serving/run.py"])
def test_the_programs_of_a_checkout_are_those_of_the_package(path):
    text = path.read_text()
    assert "from mg_keras.programs." in text
    assert "sys.path" not in text
