// A form that collects images and sends them as one file with progress: its elements are those of upload.html.
"use strict";

/**
 * Send what a person chooses, and go on. `submit({ chosen, sendOnce })` makes the request and returns the path of the
 * next page: `chosen` is [{ path, file }], and `sendOnce()` sends it and returns the file's id.
 */
function uploadForm(form, submit) {
  const at = (id) => document.getElementById(id);
  const drop = at("drop");
  const endings = new Set(drop.dataset.endings.split(" "));
  const verb = at("submit").textContent;
  let chosen = []; // what to send: [{ path, file }]
  let arrived = null; // the id of the file that was sent: trying again does not send it again
  let upload = null; // the request that sends the file now
  form.hidden = false;

  // ---- choosing -------------------------------------------------------------------------------------

  const inWords = (count, what) => `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;

  function inBytes(bytes) {
    const units = ["bytes", "kB", "MB", "GB"];
    let unit = 0;
    while (bytes >= 1000 && unit < 3) [bytes, unit] = [bytes / 1000, unit + 1];
    return `${bytes.toFixed(unit ? 1 : 0)} ${units[unit]}`;
  }

  // The rules of `labelmill submit` for what is in a folder.
  const isHidden = ({ path }) => path.split("/").some((part) => part.startsWith(".") || part === "__MACOSX");
  function isImage({ file }) {
    return !file.name.includes(".") || endings.has(file.name.split(".").pop().toLowerCase());
  }
  const isAlone = (entries) => entries.length === 1 && !entries[0].path.includes("/");

  /** Take what a person has chosen or dropped: [{ path, file }]. */
  function choose(found) {
    const visible = found.filter((each) => !isHidden(each));
    const others = isAlone(visible) ? [] : visible.filter((each) => !isImage(each));
    chosen = isAlone(visible) ? visible : visible.filter(isImage);
    chosen.sort((one, other) => (one.path < other.path ? -1 : 1));
    arrived = null;
    const bytes = chosen.reduce((sum, { file }) => sum + file.size, 0);
    const what = isAlone(chosen) ? chosen[0].file.name : inWords(chosen.length, "image");
    const said = [chosen.length ? `${what}, ${inBytes(bytes)}.` : "There are no images in it."];
    const leftOut = [];
    if (found.length > visible.length) leftOut.push(inWords(found.length - visible.length, "hidden file"));
    if (others.length) leftOut.push(`${inWords(others.length, "file")}, not images by their names`);
    if (leftOut.length) said.push(`Left out: ${leftOut.join("; ")}.`);
    if (others.some(({ path }) => /\.(zip|tar|t?gz|csv|jsonl|parquet)$/i.test(path))) said.push("Choose an archive or a manifest alone.");
    at("chosen").textContent = said.join(" ");
    at("problem").textContent = "";
    at("submit").textContent = verb;
    form.closest("details")?.setAttribute("open", "");
  }

  for (const input of [at("files"), at("folder")]) {
    input.addEventListener("change", () => {
      choose([...input.files].map((file) => ({ path: file.webkitRelativePath || file.name, file })));
      input.value = ""; // so that the same files can be chosen again
    });
  }

  /** Add the files of a dropped file or folder, with everything below it. */
  async function collect(entry, found, folder = "") {
    const path = folder + entry.name;
    if (entry.isFile) {
      found.push({ path, file: await new Promise((done, failed) => { entry.file(done, failed); }) });
      return;
    }
    const reader = entry.createReader();
    for (;;) { // a reader gives a hundred entries at a time
      const some = await new Promise((done, failed) => { reader.readEntries(done, failed); });
      if (!some.length) return;
      await Promise.all(some.map((each) => collect(each, found, `${path}/`)));
    }
  }

  // What is dropped anywhere on the page counts: otherwise the browser would leave the page, and show the file.
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover" && !drop.disabled);
    });
  }
  document.addEventListener("drop", async (event) => {
    // Before anything is awaited: the list is empty afterwards.
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
    if (!entries.length || drop.disabled) return;
    at("chosen").textContent = "Reading the folders";
    const found = [];
    try {
      for (const each of entries) await collect(each, found);
      choose(found);
    } catch (error) {
      at("chosen").textContent = `It cannot be read (${error.message}): choose something else.`;
    }
  });
  drop.addEventListener("click", (event) => {
    if (!event.target.closest("label, input, button, a")) at("files").click();
  });

  // ---- sending --------------------------------------------------------------------------------------

  /** Send what was chosen: a file alone as it is, anything else as one archive that keeps the folders. */
  function sendFile() {
    const isFile = isAlone(chosen);
    const content = isFile ? chosen[0].file : new Blob(tarPieces(chosen));
    const body = new FormData();
    body.append("purpose", "batch");
    body.append("file", content, isFile ? chosen[0].file.name : "images.tar");
    return new Promise((done, failed) => {
      upload = new XMLHttpRequest(); // fetch does not tell how much is sent
      upload.open("POST", "/v1/files");
      upload.setRequestHeader(csrf.dataset.header, csrf.content);
      upload.upload.addEventListener("progress", showProgress);
      upload.addEventListener("load", () => {
        if (upload.status < 300) done(JSON.parse(upload.responseText).id);
        else failed(Object.assign(new Error(problemIn(upload.responseText, upload.status)), { status: upload.status }));
      });
      upload.addEventListener("error", () => failed(new Error("The upload broke off: the server cannot be reached, or a file has changed.")));
      upload.addEventListener("abort", () => failed(new Error("Stopped: nothing was submitted.")));
      upload.send(body);
      at("stop").hidden = false;
    });
  }

  function showProgress({ loaded, total }) {
    at("sent").value = loaded / total;
    const percent = Math.floor((100 * loaded) / total);
    at("progress").textContent = `${inBytes(loaded)} of ${inBytes(total)} sent, ${percent}%`;
    at("told").textContent = `${percent - (percent % 25)}% sent`; // read aloud only when it changes
  }

  async function sendOnce() {
    if (!chosen.length) throw new Error("Choose images first.");
    if (!arrived) {
      at("progress").textContent = at("told").textContent = "Preparing the upload";
      at("sending").hidden = false;
      await new Promise((done) => { setTimeout(done, 50); }); // shown before many files keep the page busy
      arrived = await sendFile();
      at("progress").textContent = at("told").textContent = "Sent.";
      at("stop").hidden = true;
    }
    return arrived;
  }

  function setBusy(isBusy) {
    at("submit").disabled = drop.disabled = isBusy;
    at("stop").hidden = true;
    window.onbeforeunload = isBusy ? (event) => event.preventDefault() : null;
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    at("problem").textContent = "";
    setBusy(true);
    try {
      const next = await submit({ chosen, sendOnce });
      arrived = null;
      window.onbeforeunload = null;
      location.assign(next);
    } catch (error) {
      // fetch throws a TypeError without the server's answer
      at("problem").textContent = error instanceof TypeError ? "The server cannot be reached." : error.message;
      at("submit").textContent = error.status || !chosen.length ? verb : "Try again";
      at("sending").hidden = true;
      setBusy(false);
    }
  });

  at("stop").addEventListener("click", () => upload.abort());
  addEventListener("pageshow", (event) => { if (event.persisted) setBusy(false); }); // back from the next page
  return { choose };
}
