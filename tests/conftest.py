"""No test reads or fills the user's own store."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def store_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAPHWRIGHT_STORE", str(tmp_path_factory.mktemp("store")))
        yield
