"""A headless Chromium: Debian's, because it comes with what it needs; Playwright's own downloads are not used."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Browser, async_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """Skips the test where there is no Chromium; with CI set, fails it."""
    if not CHROMIUM:
        problem = "there is no Chromium here (apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(f"CI has to run the browser tests, but {problem}")
        pytest.skip(problem)
    async with async_playwright() as playwright:
        # Whoever runs in a container as root has no sandbox to put it in.
        chromium = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield chromium
        finally:
            await chromium.close()
