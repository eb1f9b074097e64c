"""Evaluation of descriptors and logits: it works on arrays and knows no model and no data pipeline.

`metrics` holds the scores, `search` the one nearest-neighbour search, `copies` the strong edits and the score of
copy detection, `report` the pictures and the table a person looks at.
"""
