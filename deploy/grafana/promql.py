"""PromQL expressions for counters and histograms. `by` is a comma-separated list of labels."""

MEDIAN_AND_P99 = ((0.5, "median"), (0.99, "99th percentile"))
"""Quantiles and their names."""


def per_minute(metric: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({metric}[$__rate_interval])) * 60"


def per_second(metric: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}[$__rate_interval]))"


def quantile(q: float, histogram: str, by: str, matching: str = "") -> str:
    selected = f"{histogram}_bucket{{{matching}}}" if matching else f"{histogram}_bucket"
    return (
        f"histogram_quantile({q}, sum by ({', '.join(filter(None, ['le', by]))}) (rate({selected}[$__rate_interval])))"
    )
