// Make a job of images that are sent, or at addresses.
"use strict";

(() => {
  const form = document.getElementById("new-job");
  if (!form) return;
  const at = (id) => document.getElementById(id);
  let attempt = null; // the latest request for a job, { key, body }: the same one again gives the same job

  function options() {
    const wanted = { [at("model").selectedOptions[0].dataset.field]: at("model").value };
    for (const id of ["top_k", "priority"]) if (at(id).value) wanted[id] = Number(at(id).value);
    for (const line of linesOf("metadata")) {
      const place = line.indexOf("=");
      if (place < 1) throw new Error(`Metadata: ${line} must be a name, "=" and a value.`);
      wanted.metadata = { ...wanted.metadata, [line.slice(0, place).trim()]: line.slice(place + 1).trim() };
    }
    return wanted;
  }

  const linesOf = (id) => at(id).value.split("\n").map((line) => line.trim()).filter(Boolean);

  /** Return where the images of the job are: in a file that is sent, at addresses, or below one. */
  async function source({ chosen, sendOnce }) {
    const lines = linesOf("urls");
    if (lines.length && chosen.length) throw new Error("Choose files or write down addresses, but not both: empty the addresses, or reload the page.");
    const strange = lines.find((line) => !/^[a-z][a-z0-9+.-]*:\/\//i.test(line));
    if (strange) throw new Error(`${strange} is not an address: begin it with https:// or s3://, for example.`);
    if (lines.length === 1 && lines[0].endsWith("/")) return { source_url: lines[0] };
    if (lines.length) return { urls: lines };
    if (!chosen.length) throw new Error("Choose images first, or write down their addresses.");
    return { input_file_id: await sendOnce(), delete_input: true };
  }

  function newKey() {
    return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  const { choose } = uploadForm(form, async (images) => {
    const wanted = { ...options(), ...await source(images) };
    const names = new Set(images.chosen.map(({ path }) => path.split("/")[0]));
    if (names.size === 1) wanted.metadata = { name: [...names][0], ...wanted.metadata }; // of the folder or the file
    const body = JSON.stringify(wanted);
    if (attempt?.body !== body) attempt = { key: newKey(), body };
    const batch = await send("POST", "/v1/batches", wanted, { "Idempotency-Key": attempt.key });
    attempt = null;
    return `/jobs/${batch.id}`;
  });

  /** Choose ten digits that the browser draws, each in a folder with the name of its class. */
  async function drawSample() {
    const canvas = Object.assign(document.createElement("canvas"), { width: 28, height: 28 });
    const pen = canvas.getContext("2d");
    Object.assign(pen, { font: "24px sans-serif", textAlign: "center", textBaseline: "middle" });
    const found = [];
    for (const digit of "0123456789") {
      pen.fillStyle = "black";
      pen.fillRect(0, 0, 28, 28);
      pen.fillStyle = "white";
      pen.fillText(digit, 14, 15);
      const file = new File([await new Promise((done) => { canvas.toBlob(done); })], "drawn.png");
      found.push({ path: `${digit}/drawn.png`, file });
    }
    choose(found);
  }

  at("sample")?.addEventListener("click", drawSample);
  if (location.hash === "#sample" && at("sample")) drawSample();
})();
