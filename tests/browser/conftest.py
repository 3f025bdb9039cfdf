"""One Chromium for all tests of pages; without one they fail, and say how to get it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser.devtools import Browser, chromium


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as running:
        yield running
