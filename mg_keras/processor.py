"""What the processor computes itself."""

from pathlib import Path


def computes_bfloat16() -> bool | None:
    """Whether the processor multiplies bfloat16 numbers itself; None where that is not told."""
    return _has_any("avx512_bf16", "amx_bf16", "bf16")


def computes_int8() -> bool | None:
    """Whether the processor adds up products of 8-bit numbers in 32 bits itself; None where that is not told.

    Others of x86 add them in 16 bits, which may overflow.
    """
    return _has_any("avx512_vnni", "avx_vnni", "amx_int8")


def _has_any(*flags):
    try:
        found = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return None
    return any(flag in found for flag in flags)
