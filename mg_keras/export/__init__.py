"""A trained network as a SavedModel: its graph, its check, and opening what was written."""
