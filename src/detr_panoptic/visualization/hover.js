"use strict";
// Connects the picture of a figure with its list. Returns which segment owns each pixel, row by row; what is clicked
// is told by the event "pin" of the figure, whose detail is the segment's place in the list from 1, or 0.
function connectSegments(root, { width, height, runs, segments }) {
  const owner = new Uint16Array(width * height); // 0 is void, n the n-th segment
  for (let i = 0, at = 0; i < runs.length; at += runs[i + 1], i += 2) owner.fill(runs[i], at, at + runs[i + 1]);

  const view = root.querySelector(".view"), tip = root.querySelector(".tip"), rows = [...root.querySelectorAll("tbody tr")];
  const canvas = root.querySelector("canvas"), context = canvas.getContext("2d");
  canvas.width = width;
  canvas.height = height;
  let shown = 0, pinned = 0;

  // Everything but one segment gets dark, and the segment a line around it.
  function show(index) {
    if (index === shown) return;
    shown = index;
    rows.forEach((row, i) => row.classList.toggle("shown", i + 1 === index));
    context.clearRect(0, 0, width, height);
    if (!index) return;
    const layer = context.createImageData(width, height), reach = Math.max(1, Math.round(Math.min(width, height) / 400));
    for (let y = 0, p = 0; y < height; y++)
      for (let x = 0; x < width; x++, p++) {
        if (owner[p] !== index) { layer.data[4 * p + 3] = 165; continue; }
        const edge =
          (x >= reach && owner[p - reach] !== index) || (x < width - reach && owner[p + reach] !== index) ||
          (y >= reach && owner[p - reach * width] !== index) || (y < height - reach && owner[p + reach * width] !== index);
        if (edge) layer.data.fill(255, 4 * p, 4 * p + 4);
      }
    context.putImageData(layer, 0, 0);
  }
  // What is shown while the pointer is nowhere: the row that the keyboard is on, else what was clicked.
  const rest = () => show(rows.findIndex((row) => row.querySelector(":focus-visible")) + 1 || pinned);
  function pin(index) {
    pinned = index;
    rows.forEach((row, i) => row.querySelector("button").setAttribute("aria-pressed", i + 1 === index));
    show(index);
    root.dispatchEvent(new CustomEvent("pin", { detail: index }));
  }
  function indexAt(event) {
    const box = view.getBoundingClientRect();
    const x = Math.floor(((event.clientX - box.left) / box.width) * width);
    const y = Math.floor(((event.clientY - box.top) / box.height) * height);
    return x >= 0 && y >= 0 && x < width && y < height ? owner[y * width + x] : 0;
  }
  function point(event) {
    const index = indexAt(event), box = view.getBoundingClientRect();
    index ? show(index) : rest();
    tip.hidden = !index;
    if (!index) return;
    tip.textContent = segments[index - 1];
    const x = event.clientX - box.left, y = event.clientY - box.top;
    tip.style.left = Math.max(0, Math.min(x + 14, box.width - tip.offsetWidth)) + "px";
    tip.style.top = (y + 18 + tip.offsetHeight > box.height ? y - tip.offsetHeight - 8 : y + 18) + "px";
  }
  view.addEventListener("pointermove", point);
  view.addEventListener("pointerdown", point);
  view.addEventListener("pointerleave", () => { tip.hidden = true; rest(); });
  view.addEventListener("click", (event) => {
    const index = indexAt(event);
    pin(index === pinned ? 0 : index);
    if (pinned) rows[pinned - 1].scrollIntoView({ block: "nearest" });
  });
  rows.forEach((row, i) => {
    const button = row.querySelector("button");
    row.addEventListener("pointerenter", () => show(i + 1));
    row.addEventListener("pointerleave", rest);
    button.addEventListener("focus", () => show(i + 1));
    button.addEventListener("blur", () => setTimeout(rest)); // when the next one has the focus
    button.addEventListener("click", () => { pin(pinned === i + 1 ? 0 : i + 1); show(i + 1); });
    button.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key], next = step && rows[i + step];
      if (next) { event.preventDefault(); next.querySelector("button").focus(); }
      if (event.key === "Escape") pin(0);
    });
  });
  return owner;
}
