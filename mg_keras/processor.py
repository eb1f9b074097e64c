"""What the processor computes itself."""

from pathlib import Path


def computes_bfloat16() -> bool | None:
    """Whether the processor multiplies bfloat16 numbers itself; None where that is not told."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return None
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", "bf16"))
