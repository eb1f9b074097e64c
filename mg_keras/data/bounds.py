"""What a usable photo is, in numbers, for those who look at files without TensorFlow."""

MAX_PIXELS = 128_000_000
MIN_SIDE = 8
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
"""What the photos are called that the decoder reads."""
