"""Evaluation: the scores of descriptors and logits, and the benchmarks that say of which photos.

`metrics` holds the scores, `search` the one nearest-neighbour search, `benchmarks` the sets with one contract (the one
part that knows where photos come from), `copies` the strong edits, `paper` the paper's figures, `tables` and `report`
what a person looks at, and `scores` how a score is printed there. Nothing here knows a model.
"""
