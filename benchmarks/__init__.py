"""This project beside its peers, in speed: `python -m benchmarks.NAME`, from the root of the checkout."""
