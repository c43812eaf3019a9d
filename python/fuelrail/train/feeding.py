"""Queue depths from the daemon's counters, averaged over each poll interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


class Queues:
    """Polls a loader that has `stats()`; others give nothing."""

    def __init__(self, loader: Any) -> None:
        self._stats: Callable[[], Mapping[str, Any]] | None = getattr(loader, "stats", None)
        self._before: dict[str, int] = {}

    def since_last(self) -> dict[str, float]:
        """Means since the last call: `queued`, images read and waiting for a decoding thread, and `ring_full`, the
        share of time in which every batch of the ring was ready."""
        now = self._counters()
        before, self._before = self._before or dict.fromkeys(_COUNTERS, 0), now
        passed = now.get("wall_ns", 0) - before.get("wall_ns", 0)
        if passed <= 0:
            return {}
        # Little's law: images in a queue are the time they spend in it, per time that passes.
        queued = max(0, now["queue_ns"] - before["queue_ns"]) / passed
        full = max(0, now["ring_full_ns"] - before["ring_full_ns"]) / passed
        return {"queued": round(queued, 2), "ring_full": round(min(1.0, full), 4)}

    def _counters(self) -> dict[str, int]:
        if self._stats is None:
            return {}
        try:
            daemon = self._stats().get("daemon", {})
        except Exception:
            # If something is wrong with the daemon, the next batch reports it, at a point where the run is saved.
            return {}
        return {name: int(daemon[name]) for name in _COUNTERS} if all(n in daemon for n in _COUNTERS) else {}


_COUNTERS = ("wall_ns", "queue_ns", "ring_full_ns")
