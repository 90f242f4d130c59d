"""Headless Chromium: what the tests of pages share."""

import shutil

import pytest


try:
    from selenium import webdriver
except ImportError:
    webdriver = None

HAS_BROWSER = webdriver is not None and shutil.which("chromium") and shutil.which("chromedriver")


def in_browser(test):
    """A slow test that drives Chromium."""
    reason = "needs selenium, chromium and chromedriver (Debian: apt-get install chromium chromium-driver)"
    return pytest.mark.slow(pytest.mark.skipif(not HAS_BROWSER, reason=reason)(test))


def open_browser(*more: str):
    """A driver, with more of Chromium's options; the one who asks for it quits it."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900", *more):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def set_width(driver, width: int, height: int = 900) -> None:
    """The page's width in CSS pixels; below 500 as a phone shows it."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
