// Change all jobs that match the filter: first find them, then ask, then change one after the other.
"use strict";

(() => {
  const bar = document.getElementById("all");
  if (!bar) return;

  const FITS = {
    pause: (job) => !ended(job) && !job.paused,
    resume: (job) => job.paused,
    cancel: (job) => !ended(job),
    retry: (job) => ended(job) && job.request_counts.completed < job.request_counts.total,
    delete: (job) => ended(job),
  };
  const WHAT_HAPPENS = {
    pause: "They wait until they are resumed.",
    resume: "They go on.",
    cancel: "Images that have an outcome keep it. The others get none.",
    retry: "Each becomes a new job with the images that got no label.",
    delete: "Their images and results are deleted, and cannot be restored. Corrections stay.",
  };
  const ended = (job) => ["completed", "failed", "cancelled"].includes(job.status);

  async function matching(fits) {
    const query = new URLSearchParams(bar.dataset.query);
    query.set("limit", "100");
    const found = [];
    for (;;) {
      const page = await send("GET", `/v1/batches?${query}`);
      found.push(...page.data.filter(fits));
      if (!page.has_more) return found;
      query.set("after", page.last_id);
    }
  }

  bar.addEventListener("click", async (event) => {
    const action = event.target.closest("button")?.dataset.action;
    if (!action) return;
    bar.disabled = true;
    try {
      const jobs = await matching(FITS[action]);
      const images = jobs.reduce((sum, job) => sum + job.request_counts.total, 0);
      if (!jobs.length) say(`There is no job to ${action}.`);
      else if (confirm(`${event.target.textContent} ${jobs.length.toLocaleString("en")} jobs with `
        + `${images.toLocaleString("en")} images? ${WHAT_HAPPENS[action]}`)) await changeAll(action, jobs);
    } catch (error) {
      say(error.message);
    }
    bar.disabled = false;
    refresh();
  });

  async function changeAll(action, jobs) {
    let changed = 0;
    let problem = "";
    for (const job of jobs) {
      const url = `/v1/batches/${job.id}`;
      try {
        await (action === "delete" ? send("DELETE", url) : send("POST", `${url}/${action}`));
        changed += 1;
      } catch (error) {
        problem = error.message; // such as: it has just ended
      }
      say(`${changed.toLocaleString("en")} of ${jobs.length.toLocaleString("en")} done. ${problem}`);
    }
  }
})();
