"""`python -m mg_keras VERB ...` is `mg-keras VERB ...`."""

from mg_keras.programs.command import run

if __name__ == "__main__":
    run()
