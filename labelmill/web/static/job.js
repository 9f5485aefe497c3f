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
