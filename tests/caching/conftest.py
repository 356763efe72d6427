"""The small data folder of the datasets' tests, for caches of it."""

from tests.datasets.conftest import data_root, settings, shared_root  # noqa: F401
