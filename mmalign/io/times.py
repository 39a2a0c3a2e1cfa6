"""Times in words."""


def lasting(seconds: float) -> str:
    """A time as people say it: 90 s, 4 min, 2 h 10 min, 12 days, 3 years."""
    if not 0 <= seconds < 1e10:  # out of a damaged file
        return "?"
    if (days := seconds / 86400) >= 10:
        return f"{days:.0f} days" if days < 1000 else f"{days / 365.25:.0f} years"
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
