// Keep answers in the browser until the server has stored them, so that a closed tab or a server that restarts
// loses none, and save them in batches.
"use strict";

/** Return what keeps the answers of this key. `tell` is called with what became of them, in words. */
function answersOf(holder, tell) {
  const SAVE_AFTER = 10;
  const SAVE_MS = 1500;
  const RETRY_MS = 2000;
  const MOST = 500;
  // Each tab stores its own, and takes over those of tabs that were closed. Storing an answer twice does no harm.
  const stores = `labelmill-answers-${holder}-`;
  const store = stores + [...crypto.getRandomValues(new Uint32Array(2))].join("-");

  let unsaved = []; // changes, oldest first; a label that is null takes an answer back
  let sending = 0; // so many of them are being sent
  let singly = 0; // so many are sent one by one, because one of them was refused
  let effect = "";
  let timer = null;

  const isOf = (image) => (change) => change.batch_id === image.batch_id && change.index === image.index;

  function remember() {
    if (unsaved.length) localStorage.setItem(store, JSON.stringify(unsaved));
    else localStorage.removeItem(store);
    tell(unsaved.length ? `${unsaved.length} not saved yet` : ["all saved", effect].filter(Boolean).join(". "));
  }

  function add(changes) {
    unsaved.push(...changes.map(({ batch_id, index, label }) => ({ batch_id, index, label })));
    remember();
    clearTimeout(timer);
    if (unsaved.length >= SAVE_AFTER) save();
    else timer = setTimeout(save, SAVE_MS);
  }

  function takeBack(images) {
    // What is being sent or stored cannot be forgotten: a later change undoes it.
    const sent = [];
    for (const image of images) {
      const place = unsaved.findLastIndex(isOf(image));
      if (place < sending) sent.push({ ...image, label: null });
      else unsaved.splice(place, 1);
    }
    add(sent);
  }

  async function save() {
    if (sending || !unsaved.length) return;
    const part = unsaved.slice(0, singly ? 1 : MOST);
    sending = part.length;
    try {
      const latest = part.filter((change, place) => part.findLastIndex(isOf(change)) === place);
      effect = (await send("POST", "/v1/corrections", { corrections: latest })).effect;
      unsaved.splice(0, part.length);
    } catch (error) {
      const isRefused = error.status >= 400 && error.status < 500 && error.status !== 401 && error.status !== 429;
      if (!isRefused) {
        sending = 0;
        tell(`${unsaved.length} not saved: ${error.message} They are sent again.`);
        setTimeout(save, RETRY_MS);
        return;
      }
      if (part.length > 1) singly = part.length + 1; // none of them is stored
      else {
        say(`Image ${part[0].index}: ${error.message}`);
        unsaved.shift();
      }
    }
    singly = Math.max(0, singly - 1);
    sending = 0;
    remember();
    await save();
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) save();
  });

  /** Save what tabs that were closed have left. */
  async function resume() {
    const others = Object.keys(localStorage).filter((each) => each.startsWith(stores));
    unsaved = others.flatMap((each) => JSON.parse(localStorage.getItem(each)));
    if (!unsaved.length) return;
    remember();
    others.forEach((each) => localStorage.removeItem(each));
    await save();
  }

  return { add, takeBack, resume };
}
