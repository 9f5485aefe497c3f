// Correct one image, and move to the next or the previous one with the arrow keys.
"use strict";

document.addEventListener("submit", async (event) => {
  if (event.target.id !== "correct") return;
  event.preventDefault();
  try {
    await send("PUT", event.target.dataset.url, { label: event.target.elements.label.value });
    say("Saved for the next training.");
    refresh();
  } catch (error) {
    say(error.message);
  }
});

document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, textarea, select") || event.altKey || event.ctrlKey || event.metaKey) return;
  const rel = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
  document.querySelector(rel && `a[rel=${rel}]`)?.click();
});
