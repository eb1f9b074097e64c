"""Evaluation: the scores of descriptors and logits, and the benchmarks that say of which photos.

`metrics` holds the scores, `search` the one nearest-neighbour search, `evaluators` the sets with one contract (the one
part that knows where photos come from), `folders` the names of those that have a folder of their own, `copies` the
strong edits, `paper` the paper's figures, `tables` and `pictures` what a person looks at, `records` what lies in JSON
and CSV, and `scores` how a score is printed there. Nothing here knows a model.
"""
