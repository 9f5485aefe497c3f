// Collect files, send them as one archive with progress, and make a job of them. What has arrived is not sent again.
"use strict";

(() => {
  const form = document.getElementById("new-job");
  if (!form) return;
  const at = (id) => document.getElementById(id);
  const drop = at("drop");
  let chosen = []; // [{ path, file }]
  let attempt = null; // the key and the uploaded file of a job that is not submitted yet
  let request = null; // the upload that is under way

  // ---- choosing -------------------------------------------------------------------------------------

  const isHidden = (path) => path.split("/").some((part) => part.startsWith(".") || part === "__MACOSX");

  function choose(found) {
    chosen = found.filter(({ path }) => !isHidden(path));
    attempt = null;
    const bytes = chosen.reduce((sum, { file }) => sum + file.size, 0);
    const hidden = found.length - chosen.length;
    at("chosen").textContent = chosen.length
      ? `${inWords(chosen.length, "file")}, ${size(bytes)}${hidden ? `; ${inWords(hidden, "hidden file")} left out` : ""}`
      : "There are no files in it.";
  }

  const inWords = (count, what) => `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;

  function size(bytes) {
    const units = ["bytes", "kB", "MB", "GB"];
    let unit = 0;
    while (bytes >= 1000 && unit < 3) [bytes, unit] = [bytes / 1000, unit + 1];
    return `${bytes.toFixed(unit ? 1 : 0)} ${units[unit]}`;
  }

  for (const id of ["files", "folder"]) {
    at(id).addEventListener("change", (event) => {
      choose([...event.target.files].map((file) => ({ path: file.webkitRelativePath || file.name, file })));
    });
  }

  /** Return the files of a dropped file or folder, with everything below it. */
  async function filesIn(entry, folder = "") {
    const path = folder + entry.name;
    if (entry.isFile) return [{ path, file: await new Promise((done, failed) => { entry.file(done, failed); }) }];
    const reader = entry.createReader();
    const found = [];
    for (;;) { // a reader gives a hundred entries at a time
      const some = await new Promise((done, failed) => { reader.readEntries(done, failed); });
      if (!some.length) return found;
      for (const each of some) found.push(...await filesIn(each, `${path}/`));
    }
  }

  for (const kind of ["dragenter", "dragover"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", async (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    // Before anything is awaited: the list is empty afterwards.
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
    at("chosen").textContent = "Reading the folders";
    const found = [];
    for (const each of entries) found.push(...await filesIn(each));
    choose(found);
  });

  // ---- sending --------------------------------------------------------------------------------------

  /** Return what to upload: a single file as it is, several as one archive that keeps their folders. */
  function toUpload() {
    if (chosen.length === 1) return [chosen[0].file, chosen[0].file.name];
    const folder = chosen[0].path.split("/").length > 1 ? chosen[0].path.split("/")[0] : "images";
    return [new Blob(tarPieces(chosen), { type: "application/x-tar" }), `${folder}.tar`];
  }

  function upload(content, name) {
    return new Promise((done, failed) => {
      request = new XMLHttpRequest();
      request.open("POST", "/v1/files");
      request.setRequestHeader(csrf.dataset.header, csrf.content);
      request.upload.addEventListener("progress", ({ loaded, total }) => {
        at("sent").value = loaded / total;
        at("progress").textContent = `${size(loaded)} of ${size(total)} sent`;
      });
      request.addEventListener("load", () => {
        if (request.status < 300) done(JSON.parse(request.responseText).id);
        else failed(new Error(problemIn(request.responseText, request.status)));
      });
      request.addEventListener("error", () => failed(new Error("The upload broke off. Try again: press Classify.")));
      request.addEventListener("abort", () => failed(new Error("Stopped.")));
      const body = new FormData();
      body.append("purpose", "batch");
      body.append("file", content, name);
      request.send(body);
    });
  }

  /** Return the sources of the job: an uploaded file, addresses, or a prefix. */
  async function source() {
    const lines = at("urls").value.split("\n").map((line) => line.trim()).filter(Boolean);
    if (lines.length === 1 && lines[0].endsWith("/")) return { source_url: lines[0] };
    if (lines.length) return { urls: lines };
    if (!chosen.length) throw new Error("Choose images first, or write down their addresses.");
    at("sending").hidden = false;
    attempt.file ??= await upload(...toUpload());
    return { input_file_id: attempt.file, delete_input: true };
  }

  const newKey = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16)).join("-");

  function busy(isBusy) {
    at("submit").disabled = isBusy;
    at("stop").hidden = !isBusy;
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    at("problem").textContent = "";
    attempt ??= { key: newKey(), file: null };
    busy(true);
    try {
      const wanted = await source();
      for (const id of ["dataset", "model"]) if (at(id).value.trim()) wanted[id] = at(id).value.trim();
      for (const id of ["top_k", "priority"]) if (at(id).value) wanted[id] = Number(at(id).value);
      const batch = await send("POST", "/v1/batches", wanted, { "Idempotency-Key": attempt.key });
      location.assign(`/jobs/${batch.id}`);
    } catch (error) {
      at("problem").textContent = error.message;
      // With another choice it is another job; only the file that has arrived is kept.
      if (error.status) attempt = { key: newKey(), file: attempt.file };
      busy(false);
    }
  });

  at("stop").addEventListener("click", () => request?.abort());
})();
