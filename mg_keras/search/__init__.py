"""Search: the index of a folder's photos, and the duplicates among them. Nothing here imports TensorFlow."""
