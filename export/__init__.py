"""Exporting a run as a SavedModel."""
