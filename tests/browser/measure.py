"""How fast the page is: ``python -m tests.browser.measure``. Prints figures of one run."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Page, sync_playwright

from raylens.api.playground import load_files
from tests.browser.conftest import CHROMIUM
from tests.browser.job_site import serving_jobs
from tests.browser.site import serving

TOKENS = 500
JOBS = 1000
TOKENS_PER_S = 50
LONG_TASKS = """() => {
  window.tasks = []
  new PerformanceObserver((list) => window.tasks.push(...list.getEntries().map((e) => e.duration)))
    .observe({ type: 'longtask' })
}"""
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def stream(page: Page) -> list[float]:
    """Return the durations of long tasks (over 50 ms) while an answer streams, in ms."""
    page.get_by_role("button", name="Shapes").click()
    page.locator(".frame img").wait_for()
    page.evaluate(LONG_TASKS)
    page.get_by_role("button", name="Run").click()
    page.locator("dd", has_text="in,").wait_for(timeout=120_000)
    tasks: list[float] = page.evaluate("window.tasks")
    return tasks


def list_jobs(page: Page, url: str) -> list[float]:
    """Return the durations of long tasks while many jobs run, are filtered and selected, in ms."""
    page.goto(f"{url}#jobs")
    page.get_by_text("Live", exact=True).wait_for()
    page.evaluate(LONG_TASKS)
    for number in range(JOBS):
        body = {"job_type": "query", "input": {"question": f"Question {number}"}}
        page.request.post(f"{url}api/v1/jobs", data=body)
    page.locator(".jobs-card").get_by_text(f"{JOBS:,} jobs").wait_for(timeout=120_000)
    page.get_by_role("combobox", name="Any state").select_option("succeeded")
    page.locator(".jobs-card").get_by_text(f"{JOBS:,} jobs").wait_for(timeout=120_000)
    page.get_by_label("Search names").fill("Question 99")
    page.get_by_label("Search names").fill("")
    page.get_by_role("button", name=f"Select all {JOBS:,}").click()
    page.get_by_role("button", name="Next").click()
    tasks: list[float] = page.evaluate("window.tasks")
    return tasks


def main() -> None:
    sizes = {name: len(file.compressed or file.content) for name, file in load_files().items()}
    page_bytes = sum(size for name, size in sizes.items() if not name.startswith("examples/"))
    print(f"files, compressed, without examples: {page_bytes / 1000:.1f} kB")
    with serving() as site, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        paints = []
        for _ in range(5):
            page = browser.new_context().new_page()
            page.goto(site.url)
            page.locator(".stage").wait_for()
            paints.append(page.evaluate(PAINT))
        print(
            f"first contentful paint of five new visits: {', '.join(f'{p:.0f} ms' for p in paints)}"
        )
        site.service.words = ("word ",) * TOKENS
        site.service.pause_s = 1 / TOKENS_PER_S
        tasks = stream(page)
        print(
            f"{TOKENS} tokens at {TOKENS_PER_S}/s: {len(tasks)} long tasks,"
            f" at most {max(tasks, default=0):.0f} ms"
        )
        speed = page.locator(".figures").inner_text().replace("\n", " ")
        print(f"the page shows: {speed}")
        with TemporaryDirectory() as folder, serving_jobs(Path(folder)) as job_site:
            tasks = list_jobs(browser.new_context().new_page(), job_site.url)
        print(f"{JOBS} jobs: {len(tasks)} long tasks, at most {max(tasks, default=0):.0f} ms")
        browser.close()


if __name__ == "__main__":
    main()
