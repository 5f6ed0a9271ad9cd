"""Numbers for people: 1.23 MiB, 12.3 k, 2 min 05 s. Files keep them raw."""

import math


def quantity(value: float | int) -> str:
    """Decimal prefixes, three digits: 950, 12.3 k, 1.50 M."""
    for size, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{_three(value / size)} {prefix}"
    return _three(value)


def size(value: float | int) -> str:
    """Bytes in binary prefixes: 512 B, 1.23 MiB."""
    for exponent, prefix in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if abs(value) >= 1024**exponent:
            return f"{_three(value / 1024**exponent)} {prefix}"
    return f"{value:.0f} B"


def duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _three(value: float | int) -> str:
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    magnitude = math.floor(math.log10(abs(value)))
    return f"{value:.{min(2, max(0, 2 - magnitude))}f}" if magnitude >= -1 else f"{value:.3g}"
