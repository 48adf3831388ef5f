"""A real browser, driven as a person uses it: by the texts that are on the page."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from testkit.eventually import eventually

DESKTOP, PHONE = (1280, 800), (390, 844)

_LOAD_SECONDS = 180
_QUESTION_SECONDS = 10
_ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # containers lack the privileges for it, and only our own pages are loaded
    "--no-proxy-server",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--hide-scrollbars",
)


def missing() -> str | None:
    """Return why no browser can be started, or None."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return (
        f"{' and '.join(absent)} not installed (on Debian: apt-get install chromium chromium-driver)"
        if absent
        else None
    )


class Browser:
    def __init__(self, driver: webdriver.Chrome, address: str) -> None:
        self.driver = driver
        self._address = address

    def open(self, path: str) -> None:
        self.driver.get(self._address + path)

    def sees(self, text: str, within_seconds: float = 60) -> None:
        """Wait until the text is on the page."""
        eventually(lambda: text in self.text(), within_seconds, self.text)

    def text(self) -> str:
        return str(self.driver.execute_script("return document.body.innerText"))

    def click(self, text: str, *, within: str = "//body") -> None:
        """Click on the button or the link with this text, or with this name for screen readers."""
        found = f"*[self::button or self::a][normalize-space()='{text}' or @aria-label='{text}']"
        self._once(f"{within}//{found}", WebElement.click)

    def act(self, button: str, question: str, *, choice: str = "", **fields: str) -> None:
        """Click on a button, confirm the question that it asks, and wait until the question has gone.

        `fields` are the values of the fields in the question, by label with underscores for spaces. `choice` is the
        beginning of the text of a radio button in it.

        The page may replace the button at the moment of the click, so click until the question is there.
        """
        asked = f"//*[contains(@class, 'question')][h2[starts-with(., '{question}')]]"
        eventually(lambda: self._asks(button, asked), describe=self.text)
        for label, value in fields.items():
            self.fill(label.replace("_", " "), value)
        if choice:
            self._once(f"{asked}//*[@role='radio'][starts-with(@aria-label, '{choice}')]", WebElement.click)
        self._once(f"{asked}//button[contains(@class, 'confirm')]", WebElement.click)
        eventually(lambda: not self._shows(asked), describe=self.text)

    def fill(self, label: str, value: str, *, form: str | None = None) -> None:
        """Replace the content of a field, of the form with this name if several have such a field."""

        def replace(field: WebElement) -> None:
            # Type over the old content. After `clear`, the server may write its own value into the empty field.
            field.send_keys(Keys.CONTROL, "a")
            field.send_keys(value)

        inside = f"//*[@aria-label='{form}']" if form else ""
        named = f"{inside}//label[contains(., '{label}')]"
        self._once(f"{named}//input | //input[@id = {named}/@for]", replace)

    def slide(self, steps: int) -> None:
        """Move the slider by some steps to the right; with 0 steps, to its left end."""

        def move(slider: WebElement) -> None:
            slider.send_keys(*([Keys.ARROW_RIGHT] * steps or [Keys.HOME]))

        self._once("//input[@type='range']", move)

    def state_of(self, process: str) -> str:
        script = "return document.querySelector(`[data-process='${arguments[0]}'] .state`)?.innerText ?? ''"
        return str(self.driver.execute_script(script, process))

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def errors(self) -> list[str]:
        """Return the errors that the page has reported, such as violations of its content security policy."""
        lines = self.driver.get_log("browser")  # type: ignore[no-untyped-call]  # selenium declares no types for it
        return [str(line["message"]) for line in lines if line["level"] == "SEVERE"]

    def _asks(self, button: str, asked: str) -> bool:
        """Click on the button, and return whether the question appeared soon."""
        self.click(button)
        try:
            eventually(lambda: self._shows(asked), _QUESTION_SECONDS)
        except AssertionError:
            return False
        return True

    def _shows(self, path: str) -> bool:
        return bool(self.driver.find_elements(By.XPATH, path))

    def _once(self, path: str, action: Callable[[WebElement], object]) -> None:
        """Act on the first visible element. A live page may replace the element meanwhile, so try again."""

        def act() -> bool:
            try:
                found = [each for each in self.driver.find_elements(By.XPATH, path) if each.is_displayed()]
                if found:
                    action(found[0])
            except WebDriverException:
                return False
            return bool(found)

        eventually(act, describe=lambda: f"{path}: {self.text()}")


@contextmanager
def running(address: str, profile: Path) -> Iterator[Browser]:
    """Run a browser with an empty profile for the block."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in (*_ARGUMENTS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "SEVERE"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.set_page_load_timeout(_LOAD_SECONDS)
        yield Browser(driver, address)
    finally:
        driver.quit()
