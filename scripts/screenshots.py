"""Pictures of a report for the README, light and dark: python scripts/screenshots.py RUNS

RUNS is a folder of finished runs, as `make demo` leaves in runs/. Needs Chromium and Playwright.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from normlab.lab import report, runs

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
SIZE = {"width": 1120, "height": 760}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--title", default="Which norm, at which batch size?")
    parser.add_argument("--note", default="")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    given = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        parser.error("no chromium; sh scripts/browser.sh installs it")
    found, damaged = runs.find(given.runs)
    if not any(run.status["state"] == "finished" for run in found):
        parser.error(f"{given.runs} holds no finished run; make demo makes some")
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = Path(folder) / "report.html"
        report.build(found, damaged, title=given.title, note=given.note, out=page)
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for scheme in ("light", "dark"):
            context = browser.new_context(color_scheme=scheme, viewport=SIZE)
            tab = context.new_page()
            tab.goto(page.as_uri())
            picture = given.out / f"report-{scheme}.png"
            tab.screenshot(path=picture)
            context.close()
            print(picture)
        browser.close()


if __name__ == "__main__":
    main()
