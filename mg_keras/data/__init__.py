"""Photos: sources, decoding, augmentation, repeated-augmentation batches, test resolutions."""
