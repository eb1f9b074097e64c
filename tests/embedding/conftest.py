from tests.embedding.small import folder, model, small_batches  # noqa: F401
