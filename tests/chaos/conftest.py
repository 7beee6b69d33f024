"""Each promise of the README is tried a few times here, and as often as it says under `make chaos`."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "few", max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
settings.register_profile("chaos", settings.get_profile("few"), max_examples=10_000, derandomize=False)


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("chaos" if config.getoption("--chaos") else "few")


@pytest.fixture
def tries(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """`tries(few, all)` is how often to try: a few times, or with `--chaos` all."""

    def tries(few: int, every: int) -> int:
        return every if request.config.getoption("--chaos") else few

    return tries


@pytest.fixture
def survived(record_property: Callable[[str, object], None]) -> Callable[[str, int], None]:
    """`survived(what, count)` adds to the figures that are shown at the end."""

    def survived(what: str, count: int) -> None:
        record_property(f"chaos: {what}", count)

    return survived
