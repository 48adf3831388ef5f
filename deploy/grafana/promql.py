"""What the panels ask of counters and histograms. `by` names labels, with commas between."""

MEDIAN_AND_WORST = ((0.5, "median"), (0.99, "99 of 100"))
"""Quantiles, and what they are called."""


def per_minute(metric: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({metric}[$__rate_interval])) * 60"


def per_second(metric: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}[$__rate_interval]))"


def quantile(q: float, histogram: str, by: str, matching: str = "") -> str:
    selected = f"{histogram}_bucket{{{matching}}}" if matching else f"{histogram}_bucket"
    return (
        f"histogram_quantile({q}, sum by ({', '.join(filter(None, ['le', by]))}) (rate({selected}[$__rate_interval])))"
    )
