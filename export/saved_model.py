"""The export by its former path; it is `mg_keras.export.saved_model` and `mg_keras.programs.export` now."""

from mg_keras.export.saved_model import export_saved_model, usage
from mg_keras.programs.export import export_run

__all__ = ["export_run", "export_saved_model", "usage"]
