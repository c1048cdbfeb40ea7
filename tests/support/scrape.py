"""Metrics as Prometheus reads them."""

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from tests.support.waiting import DEADLINE_S

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def metrics_at(port: int) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return every sample by name and labels, read with Prometheus's own parser."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE_S) as response:
        text = response.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(samples: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str) -> float:
    return sum(value for (found, _), value in samples.items() if found == name)
