"""Serving an exported model: a client, a local server with TF Serving's interfaces, and TF Serving's settings."""
