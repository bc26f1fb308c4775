# SPDX-License-Identifier: MIT
"""Figures as a person reads them on a terminal. Pure. What is not known is a dash."""

DASH = "-"
MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400


def count(value: float | None) -> str:
    """12,345"""
    return DASH if value is None else f"{value:,.0f}"


def rate(value: float | None) -> str:
    """Per second: one decimal below a hundred."""
    if value is None:
        return DASH
    return f"{value:,.1f}" if abs(value) < 100 else f"{value:,.0f}"


def ms(value: float | None) -> str:
    """Milliseconds, seconds from ten of them on."""
    if value is None:
        return DASH
    if value >= 10_000:
        return f"{value / 1000:.1f} s"
    return f"{value:.1f} ms" if value < 10 else f"{value:.0f} ms"


def percent(ratio: float | None) -> str:
    """A ratio; never rounded up to 100 while something failed."""
    if ratio is None:
        return DASH
    shown = f"{ratio * 100:.1f}"
    return "99.9 %" if shown == "100.0" and ratio < 1 else f"{'100' if shown == '100.0' else shown} %"


def size(value: float | None) -> str:
    """Bytes in the unit that leaves three digits."""
    if value is None:
        return DASH
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def span(seconds: float | None) -> str:
    """A length of time in its two largest units."""
    if seconds is None:
        return DASH
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < MINUTE_S:
        return f"{whole} s"
    if whole < 10 * MINUTE_S:
        return f"{whole // MINUTE_S} min {whole % MINUTE_S} s"
    if whole < HOUR_S:
        return f"{whole // MINUTE_S} min"
    if whole < DAY_S:
        return f"{whole // HOUR_S} h {whole % HOUR_S // MINUTE_S} min"
    return f"{whole // DAY_S} d {whole % DAY_S // HOUR_S} h"


def resample(values: list[float], width: int) -> list[float]:
    """The same over at most `width` values: means of equal parts, the last of which is whole."""
    if width <= 0:
        return []
    part = -(-len(values) // width) or 1
    first = len(values) % part
    parts = ([values[:first]] if first else []) + [values[at : at + part] for at in range(first, len(values), part)]
    return [sum(one) / len(one) for one in parts]


def sparkline(values: list[float], width: int) -> str:
    """The last `width` values as bars of eight heights; the highest is the full one."""
    shown = values[-width:] if width > 0 else []
    top = max(shown, default=0)
    return "".join(" " if value <= 0 else "▁▂▃▄▅▆▇█"[min(7, int(value / top * 8))] for value in shown)
