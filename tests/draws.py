"""The daemon's random numbers, in Python: what a step draws for a sample, so that another library can be given the same.

The reference of transforms/src/random.rs: a change of these values is a change of every user's augmentation.
"""

from __future__ import annotations

import math

import numpy as np

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


class Draws:
    """The values that the step at a place in the chain draws for a sample, in order."""

    def __init__(self, state: int) -> None:
        self.counter, self.step = state, mix(state ^ GOLDEN) | 1

    @classmethod
    def of(cls, place: int, position: int, seed: int = 0, epoch: int = 0) -> Draws:
        state = mix(seed ^ 0x6A09E667F3BCC908)
        for number, constant in (
            (epoch, 0xBB67AE8584CAA73B),
            (position, 0x3C6EF372FE94F82B),
            (place, 0xA54FF53A5F1D36F1),
        ):
            state = mix(((state + GOLDEN) & MASK) ^ mix(number ^ constant))
        return cls(state)

    def child(self, place: int) -> Draws:
        return Draws(mix(((self.step + GOLDEN) & MASK) ^ mix(place ^ 0x510E527FADE682D1)))

    def bits(self) -> int:
        self.counter = (self.counter + self.step) & MASK
        return mix(mix(self.counter))

    def unit(self) -> float:
        return (self.bits() >> 11) / (1 << 53)

    def units(self, count: int) -> np.ndarray:
        """`count` times `unit`, at numpy's speed."""

        def mixed(z: np.ndarray) -> np.ndarray:
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            return z ^ (z >> np.uint64(31))

        turns = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(self.step) + np.uint64(self.counter)
        self.counter = (self.counter + self.step * count) & MASK
        return (mixed(mixed(turns)) >> np.uint64(11)).astype(np.float64) / (1 << 53)

    def range(self, low: float, high: float) -> float:
        return low + (high - low) * self.unit()

    def chance(self, p: float) -> bool:
        return self.unit() < p

    def below(self, count: int) -> int:
        product = self.bits() * count
        if product & MASK < count:
            threshold = (-count & MASK) % count
            while product & MASK < threshold:
                product = self.bits() * count
        return product >> 64

    def shuffle(self, things: list) -> list:
        for last in range(len(things) - 1, 0, -1):
            other = self.below(last + 1)
            things[last], things[other] = things[other], things[last]
        return things

    def weighted(self, weights: list[float]) -> int:
        left, found = self.unit() * sum(weights), 0
        for place, weight in enumerate(weights):
            if weight > 0:
                found = place
                if left < weight:
                    break
                left -= weight
        return found

    def normal_pair(self) -> tuple[float, float]:
        bits = self.bits()
        u, v = ((bits >> 40) + 1) / (1 << 24), (bits & 0xFFFFFF) / (1 << 24)
        radius = math.sqrt(-2 * math.log(u))
        return radius * math.cos(math.tau * v), radius * math.sin(math.tau * v)
