"""Prometheus metrics of a vault."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from services.vault.holdings import Holdings
from services.vault.leases import Shares
from services.vault.servicer import VaultServicer


class VaultCollector(Collector):
    """Reads the vault at each scrape."""

    def __init__(self, holdings: Holdings, shares: Shares, servicer: VaultServicer) -> None:
        self._holdings = holdings
        self._shares = shares
        self._servicer = servicer

    def collect(self) -> Iterator[Metric]:
        """Yield one family a figure."""
        held = self._shares.held
        for name, text, value in (
            ("baton_vault_blocks", "KV blocks of the vault's pool.", self._holdings.num_blocks),
            ("baton_vault_blocks_held", "KV blocks in workers' shares.", sum(len(s.blocks) for s in held)),
            ("baton_vault_workers", "Workers that are attached.", len(held)),
            ("baton_vault_weights_bytes", "Bytes of weights held.", self._holdings.weights_bytes),
        ):
            yield GaugeMetricFamily(name, text, value=value)
        yield CounterMetricFamily(
            "baton_vault_attached", "Workers attached since the start.", value=self._servicer.num_attached
        )

    def describe(self) -> list[Metric]:
        """Name nothing in advance."""
        return []


def make_registry(holdings: Holdings, shares: Shares, servicer: VaultServicer) -> CollectorRegistry:
    """What the metrics port serves."""
    registry = CollectorRegistry()
    registry.register(VaultCollector(holdings, shares, servicer))
    return registry
