// Keep a long gallery small, and select many images to correct or confirm all of them with one request.
"use strict";

// Of thousands of images, only the latest stay in the page: all of them would fill the memory. The URL then says
// where it begins, so that reloading it or coming back to it shows the same images.
(() => {
  const MOST = 900;
  const KEPT = 600;
  const gallery = document.getElementById("images");
  if (!gallery) return;
  new MutationObserver(() => {
    if (gallery.children.length <= MOST || gallery.querySelector(".picked")) return;
    const last = gallery.lastElementChild;
    const before = last.getBoundingClientRect().top;
    while (gallery.children.length > KEPT || !("after" in gallery.firstElementChild.dataset)) {
      gallery.firstElementChild.remove();
    }
    scrollBy(0, last.getBoundingClientRect().top - before);
    const url = new URL(location);
    url.searchParams.set("after", gallery.firstElementChild.dataset.after);
    history.replaceState(null, "", url);
    document.getElementById("earlier").hidden = false;
  }).observe(gallery, { childList: true });
})();

(() => {
  const gallery = document.getElementById("images");
  const bar = document.getElementById("picked");
  if (!gallery || !("canCorrect" in gallery.dataset)) return;
  let latest = null;

  const boxes = () => [...gallery.querySelectorAll("input[type=checkbox]")];
  const picked = () => boxes().filter((box) => box.checked).map((box) => box.closest("li"));

  function update() {
    const images = picked();
    bar.hidden = images.length === 0;
    document.getElementById("picked-count").textContent = `${images.length} selected`;
    boxes().forEach((box) => box.closest("li").classList.toggle("picked", box.checked));
  }

  gallery.addEventListener("click", (event) => {
    const box = event.target.closest("input[type=checkbox]");
    if (!box) return;
    if (event.shiftKey && latest?.isConnected) {
      const all = boxes();
      const [from, to] = [all.indexOf(latest), all.indexOf(box)].sort((a, b) => a - b);
      all.slice(from, to + 1).forEach((each) => { each.checked = box.checked; });
    }
    latest = box;
    update();
  });

  // Drag from the frame of one image over others: all of them are selected.
  let dragging = false;
  gallery.addEventListener("dragstart", (event) => event.preventDefault());
  gallery.addEventListener("pointerdown", (event) => {
    if (event.button === 0 && event.pointerType === "mouse") dragging = event.target.closest("li");
  });
  gallery.addEventListener("pointerover", (event) => {
    const image = event.target.closest("li");
    if (!dragging || !image || image === dragging) return;
    [dragging, image].forEach((each) => {
      const box = each.querySelector?.("input[type=checkbox]");
      if (box) box.checked = true;
    });
    dragging = image;
    update();
    gallery.addEventListener("click", (click) => click.preventDefault(), { once: true, capture: true });
  });
  document.addEventListener("pointerup", () => { dragging = false; });

  // ---- corrections ----------------------------------------------------------------------------------

  const changed = document.getElementById("changed");
  let change = null; // the last one: images with their corrections and captions before it

  /** Save the images' corrections; null removes one. Return whether it worked, and say what came of it. */
  async function save(images, labelOf, done) {
    const corrections = images.map((image) => (
      { batch_id: gallery.dataset.job, index: Number(image.dataset.index), label: labelOf(image) }
    ));
    try {
      const found = await send("POST", "/v1/corrections", { corrections });
      changed.hidden = false;
      changed.querySelector("span").textContent = outcomeOf(done, found);
      return true;
    } catch (error) {
      say(error.message);
      return false;
    }
  }

  async function correct(labelOf, done) {
    const images = picked();
    const before = images.map((image) => (
      { image, label: image.dataset.corrected ?? null, caption: image.querySelector(".caption") }
    ));
    if (!await save(images, labelOf, done(images.length))) return;
    change = before;
    changed.querySelector("button").hidden = false;
    images.forEach((image) => {
      image.querySelector("input").checked = false;
      image.dataset.corrected = labelOf(image);
      image.querySelector(".caption").replaceWith(captionOf(image));
    });
    update();
    images[0].querySelector("input").focus({ preventScroll: true });
  }

  /** Return the caption of a corrected image, as the server writes it. */
  function captionOf(image) {
    const { label, corrected } = image.dataset;
    const caption = image.querySelector(".caption").cloneNode();
    const part = (text, name) => Object.assign(document.createElement("b"), { textContent: text, className: name });
    if (label === corrected) caption.append(part(label, ""), " ✓");
    else caption.append(part(label, "was"), " ", part(corrected, "truth"));
    return caption;
  }

  bar.addEventListener("submit", (event) => {
    event.preventDefault();
    const label = document.getElementById("picked-class").value;
    correct(() => label, (count) => `${count} corrected to ${label}.`);
  });
  document.getElementById("confirm-picked").addEventListener("click", () => {
    correct((image) => image.dataset.label, (count) => `${count} confirmed.`);
  });
  changed.querySelector("button").addEventListener("click", async (event) => {
    const labels = new Map(change.map(({ image, label }) => [image, label]));
    if (!await save([...labels.keys()], (image) => labels.get(image), `Undone: ${labels.size} are as before.`)) return;
    event.target.hidden = true;
    change.forEach(({ image, label, caption }) => {
      if (label === null) delete image.dataset.corrected;
      else image.dataset.corrected = label;
      image.querySelector(".caption").replaceWith(caption);
    });
    change[0].image.querySelector("input").focus({ preventScroll: true });
  });
  for (const [id, checked] of [["pick-all", true], ["clear-picked", false]]) {
    document.getElementById(id).addEventListener("click", () => {
      boxes().forEach((box) => { box.checked = checked; });
      update();
    });
  }
})();
