// Add labelled images to a dataset, and train on them.
"use strict";

(() => {
  const form = document.getElementById("add-images");
  if (!form) return;
  uploadForm(form, async ({ sendOnce }) => {
    const { value: dataset } = document.getElementById("dataset");
    const { value: minutes } = document.getElementById("max_minutes");
    const wanted = { dataset, input_file_id: await sendOnce(), delete_input: true };
    if (minutes) wanted.max_minutes = Number(minutes);
    const run = await send("POST", "/v1/runs", wanted);
    return `/runs/${run.id}`;
  });
})();
