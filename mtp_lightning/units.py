"""Numbers for people: 1.23 MiB, 12.3 k, 2 min 05 s, 1 of 2 seeds. Files keep them raw."""

import math

_DECIMAL = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BINARY = ((1024**4, "TiB"), (1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB"))


def quantity(value: float | int) -> str:
    """Decimal prefixes, three digits: 950, 12.3 k, 1.50 M."""
    for factor, prefix in _DECIMAL:
        if abs(value) >= factor * 0.9995:
            return f"{_three_digits(value / factor)} {prefix}"
    return _three_digits(value)


def size(value: float | int) -> str:
    """Bytes in binary prefixes: 512 B, 1.23 MiB."""
    for factor, prefix in _BINARY:
        if abs(value) >= factor:
            return f"{_three_digits(value / factor)} {prefix}"
    return f"{value:.0f} B"


def duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def counted(number: int, noun: str, of: int | None = None) -> str:
    """`1 seed`, `2 seeds`; `1 of 2 seeds` where there should be more of them."""
    total = number if of is None else of
    plural = noun if total == 1 else f"{noun}s"
    return f"{number} {plural}" if number == total else f"{number} of {total} {plural}"


def _three_digits(value: float | int) -> str:
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    magnitude = math.floor(math.log10(abs(value)))
    return f"{value:.{min(2, max(0, 2 - magnitude))}f}" if magnitude >= -1 else f"{value:.3g}"
