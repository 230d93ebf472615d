"""A headless Chromium, where there is one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--window-size=1700,2600"]
needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no chromium and chromedriver here")


@contextmanager
def open_browser(profile: Path) -> Iterator:
    """A selenium driver with a new profile in a folder."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def picture(name: str, folder: Path) -> str:
    """Where a test leaves its screenshot: in the folder that DASHBOARD_PICTURES names, say docs/images, or its own."""
    return f"{os.environ.get('DASHBOARD_PICTURES', folder)}/{name}.png"
