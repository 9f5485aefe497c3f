"""`python -m benchmarks.browser`: what a person waits for in the pages, measured in Chromium.

PostgreSQL has a job of ten million rows and a hundred thousand jobs; another job has real digits to look at.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from benchmarks.harness.made_jobs import make_finished_job, make_small_jobs, vacuum
from benchmarks.harness.report import RESULTS, milliseconds, say_milliseconds, write_result
from benchmarks.harness.served import ServedPipeline
from benchmarks.harness.setup import Json, WorkDir, prepare, run
from jobs.errors import LabelmillError
from jobs.ledger.api.keys import Role, create_key
from labelmill.console.terminal import say
from tests.browser import Browser, started_browser
from tests.console import processes_below

#: When the page can be used: its scripts have run, and its images need not be there.
_USABLE: Final = "return performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"

#: Press a class's key so many times, and return the milliseconds until each next image is painted.
_ANSWER: Final = """
const done = arguments[arguments.length - 1];
(async () => {
  const taken = [];
  const picture = document.getElementById("picture");
  for (let number = 0; number < arguments[0]; number += 1) {
    const before = picture.dataset.url;
    const began = performance.now();
    document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "7", bubbles: true }));
    while (picture.dataset.url === before || !picture.complete)
      await new Promise(requestAnimationFrame);
    await new Promise(requestAnimationFrame);
    taken.push(performance.now() - began);
  }
  done(taken);
})();
"""

#: The indices of the images that are in the page now.
_INDICES: Final = (
    "return [...document.querySelectorAll('#images [data-index]')].map((each) => each.dataset.index)"
)

_BATCH_SECONDS: Final = 120.0


def main(
    rows: Annotated[int, typer.Option(min=1_000, help="Images of the large job.")] = 10_000_000,
    jobs: Annotated[int, typer.Option(min=100, help="Small jobs.")] = 100_000,
    thumbnails: Annotated[int, typer.Option(min=100, help="Thumbnails to scroll through.")] = 5_000,
    answers: Annotated[int, typer.Option(min=10, help="Images to review.")] = 200,
    repeats: Annotated[int, typer.Option(min=2, help="How often each page is opened.")] = 10,
    work_dir: WorkDir = None,
    json: Json = RESULTS,
) -> None:
    """Measure when pages can be used, the memory of a long gallery, and reviewing by keys."""
    with prepare(work_dir, images=10_000) as setup, ServedPipeline(setup) as pipeline:
        client = pipeline.client
        real = client.submit(setup.folder)
        client.wait(real, timeout=_BATCH_SECONDS)
        model = client.model().id
        make_small_jobs(client, model, jobs)
        large = make_finished_job(client, model, rows)
        vacuum(client)
        setup.settle()
        with client.ledger.transaction() as connection:
            _, key = create_key(connection, "browser", Role.ADMIN)
        with started_browser() as browser:
            browser.sign_in(pipeline.url, key)
            usable = _time_pages(browser, large, repeats)
            for name, figures in usable.items():
                say_milliseconds(name, figures)
            memory = _scroll(browser, real, thumbnails)
            say(f"{thumbnails:,} thumbnails: the tab has {memory['tab_mib']} MiB")
            review = _review(browser, real, answers)
            say_milliseconds("the next image after a key", review["next_image"])
            say(f"{review['per_second']} answers per second")
    facts = {"rows": rows, "jobs": jobs, "repeats": repeats, "database": setup.databases.facts}
    write_result("browser", facts | {"usable": usable, "gallery": memory, "review": review}, json)


def _time_pages(browser: Browser, job_id: str, repeats: int) -> dict[str, dict[str, float]]:
    """Return the milliseconds until each page can be used."""
    paths = {
        "home": "/home",
        "jobs": "/jobs",
        "the large job": f"/jobs/{job_id}",
        "its images": f"/jobs/{job_id}/images",
        "its mistakes": f"/jobs/{job_id}/images?mistakes=true",
        "review": "/review",
        "models": "/models",
        "runs": "/runs",
    }
    taken: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(repeats):
        for name, path in paths.items():
            browser.open(path)
            taken[name].append(float(browser.script(_USABLE)) / 1000)
    return {name: milliseconds(seconds) for name, seconds in taken.items()}


def _scroll(browser: Browser, job_id: str, thumbnails: int) -> dict[str, Any]:
    """Scroll through a gallery, and return the memory of its tab."""
    browser.open(f"/jobs/{job_id}/images")
    deadline = time.monotonic() + 10 * _BATCH_SECONDS
    seen: set[str] = set()
    while len(seen) < thumbnails:
        seen.update(browser.script(_INDICES))
        browser.script("document.querySelector('#images li:last-child').scrollIntoView()")
        if time.monotonic() > deadline:
            raise LabelmillError(f"Only {len(seen):,} thumbnails were shown.")
        time.sleep(0.05)
    time.sleep(2)  # until the last images are there
    heap = browser.script("return performance.memory.usedJSHeapSize")
    pids = processes_below(browser.driver.service.process.pid)
    tabs = [pid for pid in pids if b"--type=renderer" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return {
        "thumbnails": len(seen),
        "tab_mib": max(map(_memory_mib, tabs)),
        "heap_mib": round(heap / 2**20, 1),
    }


def _memory_mib(pid: int) -> float:
    """Return a process's memory; of what it shares with others, its part."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return round(sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024, 1)


def _review(browser: Browser, job_id: str, answers: int) -> dict[str, Any]:
    """Answer by keys as fast as images are shown, and return how long each took."""
    browser.open(f"/review?job={job_id}&kind=random")
    browser.find("#suggested", "")
    browser.driver.set_script_timeout(_BATCH_SECONDS)
    began = time.monotonic()
    taken = browser.driver.execute_async_script(_ANSWER, answers)
    rate = answers / (time.monotonic() - began)
    return {"next_image": milliseconds([each / 1000 for each in taken]), "per_second": round(rate, 1)}


if __name__ == "__main__":
    run(main)
