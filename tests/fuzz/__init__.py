"""Random inputs of every part: invariants, round trips, and errors of the right kind that name the culprit.

`pytest -m fuzz` runs these alone; with DETR_PANOPTIC_FUZZ=50 each tries fifty times as many examples, at random. What
they find gets a named test beside the module's others.
"""

from collections.abc import Callable

from hypothesis import HealthCheck, settings

from tests.conftest import FUZZ_FACTOR


def examples(count: int) -> settings:
    """So many examples by default; fixtures of a function may be shared among them."""
    return settings(
        max_examples=FUZZ_FACTOR * count,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
    )


def message_of(function: Callable[[], object], *kinds: type[Exception]) -> str | None:
    """The text of the error that a function raises, None if it raises none; errors of other kinds are not caught."""
    try:
        function()
    except kinds as error:
        return str(error)
    return None
