"""What a node's Prometheus endpoint shows, and what the Grafana dashboard asks it for."""

import json
import re
import time
import urllib.request
from collections.abc import Iterator, Mapping, Set
from importlib.resources import files

import ray

_PATIENCE_S = 90.0
_SAMPLE = re.compile(r"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)(\{(?P<labels>.*)\})? (?P<value>\S+)")


def scraped(labels: Mapping[str, str], names: Set[str]) -> dict[str, float]:
    """Read the endpoint until it shows all names with these labels; Ray passes numbers on every few seconds."""
    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    until = time.monotonic() + _PATIENCE_S
    while True:
        text = urllib.request.urlopen(address, timeout=10).read().decode()
        found = {name: value for name, value in _samples(text, labels) if name in names}
        if found.keys() == names or time.monotonic() > until:
            return found
        time.sleep(0.2)


def _samples(text: str, labels: Mapping[str, str]) -> Iterator[tuple[str, float]]:
    for sample in filter(None, map(_SAMPLE.fullmatch, text.splitlines())):
        own = dict(re.findall(r'(\w+)="([^"]*)"', sample["labels"] or ""))
        if labels.items() <= own.items():
            yield sample["name"], float(sample["value"])


def grafana_expressions() -> list[str]:
    """What the dashboard's panels ask Prometheus."""
    dashboard = json.loads((files("trm_ray") / "distributed" / "grafana.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
