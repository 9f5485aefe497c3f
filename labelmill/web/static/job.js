// The progress of one job, from the API's server-sent events: the server reads the job once for all who watch.
"use strict";

(() => {
  const whole = new Intl.NumberFormat("en");

  function set(id, text) {
    const element = document.getElementById(id);
    if (element && element.textContent !== text) element.textContent = text;
  }

  function inWords(seconds) {
    if (seconds === null || seconds === undefined) return "–";
    const [minutes, rest] = [Math.floor(seconds / 60), Math.round(seconds % 60)];
    return minutes >= 60 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : minutes ? `${minutes} min ${rest} s` : `${rest} s`;
  }

  function show(batch) {
    const counts = batch.request_counts;
    const done = counts.completed + counts.failed;
    const bar = document.getElementById("bar");
    bar.max = Math.max(1, counts.total);
    bar.value = done;
    set("done", whole.format(done));
    set("total", whole.format(counts.total));
    set("failed", whole.format(counts.failed));
    set("rate", batch.rate ? whole.format(Math.round(batch.rate)) : "–");
    set("left", inWords(batch.eta_seconds));
  }

  let events = null;

  function follow() {
    const job = document.querySelector("[data-running]");
    if (!job || document.hidden || events) return;
    events = new EventSource(`/v1/batches/${job.dataset.job}/events`);
    events.addEventListener("progress", (event) => show(JSON.parse(event.data)));
    for (const end of ["completed", "failed", "cancelled"]) {
      events.addEventListener(end, () => {
        stop();
        refresh();
      });
    }
  }

  function stop() {
    events?.close();
    events = null;
  }

  document.addEventListener("visibilitychange", () => (document.hidden ? stop() : follow()));
  follow();
})();

// Drag over the bars of the histogram to see the images of all of them. Each bar is a link, too.
(() => {
  let first = null; // the row where the mouse went down
  const rowAt = (event) => event.target.closest?.("#histogram tr") ?? null;

  /** Mark the rows from the first to this one, or none without it, and return them. */
  function mark(last) {
    const rows = [...document.querySelectorAll("#histogram tr")];
    const [from, to] = [rows.indexOf(first), rows.indexOf(last)].sort((a, b) => a - b);
    rows.forEach((row, place) => row.classList.toggle("picked", from >= 0 && place >= from && place <= to));
    return rows.slice(Math.max(0, from), to + 1);
  }

  document.addEventListener("mousedown", (event) => {
    first = event.button === 0 ? rowAt(event) : null;
    if (first) event.preventDefault(); // otherwise the text or the link is dragged
  });
  document.addEventListener("mouseover", (event) => { if (first) mark(rowAt(event)); });
  document.addEventListener("mouseup", (event) => {
    const last = first && rowAt(event);
    if (last && last !== first) {
      const [low, high] = [mark(last)[0], mark(last).at(-1)].map((row) => new URL(row.querySelector("a").href));
      const below = high.searchParams.get("below"); // the last bar has none
      if (below) low.searchParams.set("below", below);
      else low.searchParams.delete("below");
      location.assign(low);
    }
    first = null;
    if (!last) mark(null);
  });
})();
