"""RELIABILITY S11: twelve payloads in six places of the page, in a browser, do nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from fake_runs import PAYLOADS, FakeRun

from normlab.lab import report
from normlab.lab.experiment import Experiment

PLACES = ("run name", "class", "metric", "file", "exception", "host")


def page_with(text: str, place: str, folder: Path) -> Path:
    """A page with a text in one place of its runs."""
    folder.mkdir()
    here = {p: text if p == place else "plain" for p in PLACES}
    (folder / "environment.json").write_text(json.dumps({"host": here["host"]}))

    class Told(FakeRun):
        def events(self) -> list[dict[str, Any]]:
            start, *epochs = super().events()
            start["classes"] = [here["class"]]
            return [start, *({**e, here["metric"]: 0.5} for e in epochs)]

    found = [
        Told(Experiment(norm=norm, seed=seed), path=folder)
        for norm in ("batch", here["run name"])
        for seed in (0, 1)
    ]
    found[1].status = {"state": "failed", "cause": here["exception"]}
    damaged = [(here["file"], here["exception"])]
    return report.build(found, damaged, title="T", note="", out=folder / "report.html")


COUNTED = """() => {
  const count = {};
  for (const e of document.querySelectorAll('*')) {
    const names = e.getAttributeNames().filter((n) => n !== 'class').sort();
    const key = [e.tagName, ...names].join(' ');
    count[key] = (count[key] || 0) + 1;
  }
  return count;
}"""


@pytest.fixture(scope="module")
def harmless(shared: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """How often each element with its attributes is on a page without an attack."""
    file = page_with("plain2", "run name", tmp_path_factory.mktemp("harmless") / "one")
    return shared.open(file).evaluate(COUNTED)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("payload", PAYLOADS)
def test_s11_payload_is_only_text(
    payload: str, place: str, shared: Any, harmless: dict[str, int], tmp_path: Path
) -> None:
    file = page_with(PAYLOADS[payload], place, tmp_path / "one")
    for seen in (shared.requests, shared.complaints, shared.dialogs):
        seen.clear()
    page = shared.open(file)
    counted = page.evaluate(COUNTED)
    page.locator("main .drawing:visible").first.press("End")  # the name in the tip too
    assert counted == harmless
    assert page.evaluate(COUNTED).keys() <= {*harmless, "DIV aria-live id role style"}
    assert (shared.requests, shared.complaints, shared.dialogs) == ([file.as_uri()], [], [])
