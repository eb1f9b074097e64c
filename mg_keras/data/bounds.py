"""What a usable photo is, in numbers, for those who look at files without TensorFlow."""

MAX_PIXELS = 128_000_000
MIN_SIDE = 8
