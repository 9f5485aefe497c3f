// Review by keys: one image at a time, or a page of them. The next images are loaded ahead.
"use strict";

(() => {
  const root = document.getElementById("review");
  if (!root) return;
  const at = (id) => document.getElementById(id);
  const grid = at("tiles"); // null: one image is shown
  const isBlind = root.dataset.kind === "random";
  const PAGE = grid ? 20 : 1;
  const AHEAD = 20;
  const RETRY_MS = 2000;
  const answers = answersOf(root.dataset.holder, (text) => { at("unsaved").textContent = text; });

  // An image has a `mark` if its label is not taken as it is: the right class, or null if it is skipped.
  let queue = []; // images to come; the first page of them is shown
  let chosen = null; // the image that a key is for
  const history = []; // pages that were answered or skipped, for undo
  let isLoading = false;
  let isExhausted = false;
  let isFirst = true;
  const blind = { right: 0, all: 0 };

  const shown = () => queue.slice(0, PAGE);
  const labelOf = (image) => image.mark ?? image.label;

  // ---- images ---------------------------------------------------------------------------------------

  async function load() {
    const wanted = { dataset: root.dataset.dataset, kind: root.dataset.kind, limit: AHEAD, again: isFirst };
    if (root.dataset.job) wanted.batch_id = root.dataset.job;
    const found = (await send("POST", "/v1/review", wanted)).data;
    isFirst = false;
    isExhausted = found.length === 0;
    for (const image of found) {
      const size = grid ? "small" : "large";
      image.url = `/v1/batches/${image.batch_id}/images/${image.index}/thumbnail?size=${size}`;
      image.picture = new Image();
      image.picture.src = image.url;
      queue.push(image);
    }
  }

  async function fill() {
    if (isLoading || isExhausted || queue.length >= PAGE + AHEAD / 2) return;
    isLoading = true;
    try {
      await load();
    } catch (error) {
      say(error.message);
      setTimeout(fill, RETRY_MS);
    }
    isLoading = false;
    show();
  }

  const share = (image) => `${(100 * image.confidence).toFixed(1)} %`;

  function show() {
    const page = shown();
    if (!page.includes(chosen)) [chosen = null] = page;
    at("nothing").hidden = page.length > 0 || !isExhausted;
    root.classList.toggle("waiting", !page.length);
    if (!chosen) return;
    at("open").href = `/jobs/${chosen.batch_id}/images/${chosen.index}`;
    buttons.forEach((button) => button.classList.toggle("suggested", !isBlind && button.dataset.label === labelOf(chosen)));
    if (grid) showPage(page);
    else showCard();
  }

  function showCard() {
    if (at("picture").dataset.url === chosen.url) return;
    at("picture").dataset.url = chosen.url;
    at("picture").src = chosen.url;
    at("picture").alt = `Image ${chosen.index}`;
    at("suggested").textContent = isBlind ? "?" : chosen.label;
    at("confidence").textContent = isBlind ? "" : share(chosen);
    at("name").textContent = isBlind ? "" : chosen.name; // its folder may be the true class
  }

  function showPage(page) {
    const tiles = page.map((image) => image.tile ?? makeTile(image));
    const hadFocus = grid.contains(document.activeElement);
    if (tiles.length !== grid.children.length || tiles.some((tile, place) => tile !== grid.children[place])) {
      grid.replaceChildren(...tiles);
      if (hadFocus) focusTile(chosen);
    }
    page.forEach(showTile);
    const corrected = page.filter((image) => image.mark).length;
    const skipped = page.filter((image) => image.mark === null).length;
    const parts = [corrected && `${corrected} corrected`, skipped && `${skipped} skipped`].filter(Boolean);
    at("accept-text").textContent = parts.length
      ? `save: ${parts.join(", ")}, the rest right`
      : `all ${page.length} of these are right`;
  }

  function makeTile(image) {
    image.tile = at("tile").content.firstElementChild.cloneNode(true);
    const button = image.tile.querySelector("button");
    button.title = image.name;
    button.addEventListener("focus", () => {
      chosen = image;
      show();
    });
    button.addEventListener("click", () => button.focus()); // not every browser does
    const picture = image.tile.querySelector("img");
    picture.src = image.url;
    picture.alt = `Image ${image.index}`;
    return image.tile;
  }

  function showTile(image) {
    image.tile.classList.toggle("picked", image === chosen);
    image.tile.classList.toggle("skipped", image.mark === null);
    const [label, note] = image.tile.querySelectorAll("b, i");
    label.textContent = image.label;
    label.className = image.mark ? "was" : "";
    note.textContent = image.mark === null ? "skipped" : image.mark ? `→ ${image.mark}` : share(image);
    note.className = image.mark ? "truth" : "share quiet";
  }

  const focusTile = (image) => image.tile.querySelector("button").focus();

  /** Choose the next or another image of the page with the arrow keys. */
  function move(key) {
    const page = shown();
    const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
    const to = page[page.indexOf(chosen) + step];
    focusTile(to ?? chosen);
  }

  // ---- answers --------------------------------------------------------------------------------------

  function mark(label) {
    if (!chosen) return;
    chosen.mark = label === chosen.label || label === chosen.mark ? undefined : label;
    if (grid) show();
    else finish();
  }

  /** Answer all that is shown: the labels are right, except those of marked images. */
  function finish() {
    const page = queue.splice(0, PAGE);
    if (!page.length) return;
    history.push(page);
    const answered = page.filter((image) => image.mark !== null);
    answers.add(answered.map((image) => ({ ...image, label: labelOf(image) })));
    count(answered, 1);
    show();
    fill();
  }

  function undo() {
    const page = history.pop();
    if (!page) return;
    queue.unshift(...page);
    const answered = page.filter((image) => image.mark !== null);
    answers.takeBack(answered);
    count(answered, -1);
    if (!grid) page.forEach((image) => { delete image.mark; });
    [chosen] = page;
    show();
  }

  function count(answered, sign) {
    const change = sign * answered.length;
    for (const [id, more] of [["answered", change], ["missing", -change]]) {
      const element = at(id);
      if (!element) continue;
      element.dataset.count = Math.max(0, Number(element.dataset.count) + more);
      element.textContent = Number(element.dataset.count).toLocaleString("en");
    }
    if (!isBlind) return;
    blind.all += change;
    blind.right += sign * answered.filter((image) => labelOf(image) === image.label).length;
    at("blind").textContent = blind.all ? `${blind.right} of ${blind.all}` : "–";
  }

  // ---- keys -----------------------------------------------------------------------------------------

  const buttons = [...document.querySelectorAll("#classes button")];
  const keys = new Map();
  const named = buttons.every((button) => button.dataset.label.length === 1);
  buttons.forEach((button, place) => {
    if (buttons.length > 10 && !named) return;
    const key = named ? button.dataset.label.toLowerCase() : String((place + 1) % 10);
    keys.set(key, button.dataset.label);
    button.querySelector("kbd").textContent = key;
  });

  const find = at("find");

  function narrow() {
    const text = find.value.trim().toLowerCase();
    buttons.forEach((button) => {
      button.parentElement.hidden = !button.dataset.label.toLowerCase().includes(text);
    });
    return buttons.filter((button) => !button.parentElement.hidden);
  }

  find.addEventListener("input", narrow);

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, nav, header")) return;
    if (event.target === find && find.value) {
      if (event.key === "Escape") find.value = "";
      else if (event.key === "Enter") {
        const [first] = narrow();
        if (first) mark(first.dataset.label);
        find.value = "";
        if (grid && chosen) focusTile(chosen); // where the arrow keys go on
      } else return;
      event.preventDefault();
      narrow();
      return;
    }
    if (event.target.closest("a") && event.key === "Enter") return;
    const isButton = event.target.closest("button") && !grid?.contains(event.target);
    if (isButton && (event.key === "Enter" || event.key === " ")) return; // the button's own
    if (event.key === "Enter") {
      if (!isBlind && !(grid && event.repeat)) finish();
    } else if (event.key === " ") mark(null);
    else if (event.key === "Backspace") undo();
    else if (grid && chosen && event.key.startsWith("Arrow") && event.target !== find) move(event.key);
    else if (!shortcuts.checked) return;
    else if (keys.has(event.key.toLowerCase())) mark(keys.get(event.key.toLowerCase()));
    else {
      if (!find.hidden && event.key.length === 1) find.focus();
      return;
    }
    event.preventDefault();
  });

  at("classes").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    mark(button.dataset.label);
    if (event.detail) button.blur(); // with the mouse: Enter must accept the next image, not press this again
  });
  at("accept").addEventListener("click", finish);
  at("accept").hidden = isBlind;
  at("skip").addEventListener("click", () => mark(null));
  at("undo").addEventListener("click", undo);

  answers.resume().then(fill);
})();
