"""A client for TF Serving, and a local server that speaks its interfaces."""
