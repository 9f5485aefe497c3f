// Move to the next or the previous image with the arrow keys.
"use strict";

document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, textarea, select") || event.altKey || event.ctrlKey || event.metaKey) return;
  const rel = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
  document.querySelector(rel && `a[rel=${rel}]`)?.click();
});
