// Review by keys. The next images are loaded ahead, and answers are saved in batches; until the server has stored
// them, they are kept in the browser, so that a closed tab or a server that restarts loses none.
"use strict";

(() => {
  const root = document.getElementById("review");
  if (!root) return;
  const at = (id) => document.getElementById(id);
  const isBlind = root.dataset.kind === "random";
  const AHEAD = 20;
  const SAVE_AFTER = 10;
  const SAVE_MS = 1500;
  const RETRY_MS = 2000;
  // Each tab stores its own, and takes over those of tabs that were closed. Storing an answer twice does no harm.
  const stores = `labelmill-answers-${root.dataset.holder}-`;
  const store = stores + [...crypto.getRandomValues(new Uint32Array(2))].join("-");

  let queue = []; // images to come; the first is shown
  const history = []; // images that were answered or skipped, for undo
  let unsaved = []; // changes, oldest first; label null: undo it
  let saving = null;
  let loading = null;
  let isExhausted = false;
  let isFirst = true;
  const blind = { right: 0, all: 0 };

  // ---- images ---------------------------------------------------------------------------------------

  const imageUrl = (image) => `/v1/batches/${image.batch_id}/images/${image.index}/thumbnail?size=large`;

  async function load() {
    const wanted = { dataset: root.dataset.dataset, kind: root.dataset.kind, limit: AHEAD, again: isFirst };
    if (root.dataset.job) wanted.batch_id = root.dataset.job;
    const found = (await send("POST", "/v1/review", wanted)).data;
    isFirst = false;
    isExhausted = found.length === 0;
    for (const image of found) {
      image.picture = new Image();
      image.picture.src = imageUrl(image);
      queue.push(image);
    }
  }

  async function fill() {
    if (loading || isExhausted || queue.length > AHEAD / 2) return;
    loading = load();
    try {
      await loading;
    } catch (error) {
      say(error.message);
      setTimeout(fill, RETRY_MS);
    }
    loading = null;
    show();
  }

  function show() {
    const image = queue[0];
    at("nothing").hidden = Boolean(image) || !isExhausted;
    root.classList.toggle("waiting", !image);
    if (!image) return;
    if (at("picture").dataset.url === imageUrl(image)) return;
    at("picture").dataset.url = imageUrl(image);
    at("picture").src = imageUrl(image);
    at("picture").alt = `Image ${image.index}: ${image.name}`;
    at("open").href = `/jobs/${image.batch_id}/images/${image.index}`;
    at("suggested").textContent = isBlind ? "?" : image.label;
    at("confidence").textContent = isBlind ? "" : `${(100 * image.confidence).toFixed(1)} %`;
    at("name").textContent = image.name;
    buttons.forEach((button) => button.classList.toggle("suggested", !isBlind && button.dataset.label === image.label));
  }

  // ---- answers --------------------------------------------------------------------------------------

  function next(image) {
    queue.shift();
    history.push(image);
    show();
    fill();
  }

  function answer(label) {
    const image = queue[0];
    if (!image) return;
    image.answer = label;
    keep({ batch_id: image.batch_id, index: image.index, label });
    if (isBlind) {
      blind.all += 1;
      blind.right += label === image.label;
      image.counted = true;
    }
    next(image);
    count(1);
  }

  function skip() {
    if (queue[0]) next(queue[0]);
  }

  function undo() {
    const image = history.pop();
    if (!image) return;
    queue.unshift(image);
    if (image.answer !== undefined) {
      const place = unsaved.findLastIndex((each) => each.batch_id === image.batch_id && each.index === image.index);
      // What is being sent cannot be taken back: it is undone by a later change.
      if (place >= (saving ? saving.count : 0)) unsaved.splice(place, 1);
      else keep({ batch_id: image.batch_id, index: image.index, label: null });
      if (image.counted) {
        blind.all -= 1;
        blind.right -= image.answer === image.label;
      }
      delete image.answer;
      remember();
      count(-1);
    }
    show();
  }

  function count(change) {
    for (const [id, sign] of [["answered", 1], ["missing", -1]]) {
      const element = at(id);
      if (!element) continue;
      element.dataset.count = Math.max(0, Number(element.dataset.count) + sign * change);
      element.textContent = Number(element.dataset.count).toLocaleString("en");
    }
    if (at("blind")) at("blind").textContent = blind.all ? `${blind.right} of ${blind.all}` : "–";
  }

  // ---- saving ---------------------------------------------------------------------------------------

  function keep(change) {
    unsaved.push(change);
    remember();
    clearTimeout(keep.timer);
    if (unsaved.length >= SAVE_AFTER) save();
    else keep.timer = setTimeout(save, SAVE_MS);
  }

  function remember() {
    if (unsaved.length) localStorage.setItem(store, JSON.stringify(unsaved));
    else localStorage.removeItem(store);
    at("unsaved").textContent = unsaved.length ? `${unsaved.length} not saved yet` : "all saved";
  }

  /** Send the oldest changes: the answers up to the first undo together, or one undo. */
  async function save() {
    if (saving || !unsaved.length) return;
    const firstUndo = unsaved.findIndex((each) => each.label === null);
    const part = unsaved.slice(0, firstUndo === -1 ? 500 : Math.max(1, firstUndo));
    saving = { count: part.length };
    try {
      await (part[0].label === null ? removeOne(part[0]) : saveAll(part));
      unsaved = unsaved.slice(part.length);
      saving = null;
      remember();
      save();
    } catch (error) {
      saving = null;
      if (error.status >= 400 && error.status < 500 && error.status !== 401 && error.status !== 429) {
        await saveEach(part);
      } else {
        at("unsaved").textContent = `${unsaved.length} not saved: ${error.message} They are sent again.`;
        setTimeout(save, RETRY_MS);
      }
    }
  }

  const saveAll = (corrections) => send("POST", "/v1/corrections", { corrections: lastOfEach(corrections) });

  const labelUrl = (change) => `/v1/batches/${change.batch_id}/images/${change.index}/label`;

  async function removeOne(change) {
    try {
      await send("DELETE", labelUrl(change));
    } catch (error) {
      if (error.status !== 404) throw error; // it is gone already
    }
  }

  /** One answer was refused, so none of its batch is stored: send them one by one, and drop what is refused. */
  async function saveEach(part) {
    for (const change of part) {
      try {
        await (change.label === null ? removeOne(change) : send("PUT", labelUrl(change), { label: change.label }));
      } catch (error) {
        say(`Image ${change.index}: ${error.message}`);
      }
      unsaved.shift();
      remember();
    }
    save();
  }

  function lastOfEach(changes) {
    const found = new Map();
    for (const each of changes) found.set(`${each.batch_id}/${each.index}`, each);
    return [...found.values()];
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) save();
  });

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
        if (first) answer(first.dataset.label);
        find.value = "";
      } else return;
      event.preventDefault();
      narrow();
      return;
    }
    if (event.target.closest("a") && event.key === "Enter") return;
    const isButton = event.target.closest("button");
    if (isButton && (event.key === "Enter" || event.key === " ")) return; // the button's own
    if (event.key === "Enter") {
      if (!isBlind && queue[0]) answer(queue[0].label);
    } else if (event.key === " ") skip();
    else if (event.key === "Backspace") undo();
    else if (keys.has(event.key.toLowerCase())) answer(keys.get(event.key.toLowerCase()));
    else {
      if (!find.hidden && event.key.length === 1) find.focus();
      return;
    }
    event.preventDefault();
  });

  at("classes").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    answer(button.dataset.label);
    if (event.detail) button.blur(); // with the mouse: Enter must accept the next image, not press this again
  });
  at("accept").addEventListener("click", () => { if (queue[0]) answer(queue[0].label); });
  at("accept").hidden = isBlind;
  at("skip").addEventListener("click", skip);
  at("undo").addEventListener("click", undo);

  function takeOver() {
    const others = Object.keys(localStorage).filter((each) => each.startsWith(stores));
    unsaved = others.flatMap((each) => JSON.parse(localStorage.getItem(each)));
    if (unsaved.length) remember();
    others.forEach((each) => localStorage.removeItem(each));
  }

  (async () => {
    takeOver();
    if (unsaved.length) await save();
    await fill();
  })();
})();
