// Shows where the model looked for the segment that is clicked: one picture for each of its attention maps. The numbers
// in `heat` are those of draw_heat in attention.py, which says what is done with them.
function connectAttention(root, owner, { width, height, attention }) {
  const panel = root.querySelector(".attention"), { heat, cell, rows, columns, objects } = attention;
  const SIDE = 320, scale = Math.min(1, SIDE / Math.max(width, height));
  const w = Math.max(1, Math.round(width * scale)), h = Math.max(1, Math.round(height * scale));

  function grays() {
    const canvas = document.createElement("canvas"), image = root.querySelector("img");
    canvas.width = w;
    canvas.height = h;
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0, w, h);
    const { data } = context.getImageData(0, 0, w, h), values = new Float32Array(w * h);
    for (let p = 0; p < values.length; p++)
      values[p] = heat.darkened * (0.299 * data[4 * p] + 0.587 * data[4 * p + 1] + 0.114 * data[4 * p + 2]);
    return values;
  }
  const ownerAt = (x, y) => owner[Math.floor(((y + 0.5) * height) / h) * width + Math.floor(((x + 0.5) * width) / w)];
  function light(strength, channel) {
    const at = strength * (heat.colors.length - 1), low = Math.min(Math.floor(at), heat.colors.length - 2);
    return heat.colors[low][channel] + (at - low) * (heat.colors[low + 1][channel] - heat.colors[low][channel]);
  }
  function draw(canvas, gray, values, index) {
    canvas.width = w;
    canvas.height = h;
    const context = canvas.getContext("2d"), picture = context.createImageData(w, h);
    for (let y = 0, p = 0; y < h; y++)
      for (let x = 0; x < w; x++, p++) {
        const row = Math.min(rows - 1, Math.floor((y + 0.5) / h / cell[1])), column = Math.min(columns - 1, Math.floor((x + 0.5) / w / cell[0]));
        const strength = (values[row * columns + column] / 255) ** heat.gamma;
        const inside = ownerAt(x, y) === index;
        const edge = (x && (ownerAt(x - 1, y) === index) !== inside) || (y && (ownerAt(x, y - 1) === index) !== inside);
        for (let channel = 0; channel < 3; channel++)
          picture.data[4 * p + channel] = edge ? 255 : (1 - heat.most_covered * strength) * gray[p] + heat.light * light(strength, channel);
        picture.data[4 * p + 3] = 255;
      }
    context.putImageData(picture, 0, 0);
  }
  function show(index) {
    panel.hidden = !index;
    panel.replaceChildren();
    if (!index) return;
    const { title, maps } = objects[index - 1], gray = grays();
    const heading = document.createElement("h3"), grid = document.createElement("div");
    heading.textContent = "Where the model looked: " + title;
    grid.className = "maps";
    for (const { caption, values } of maps) {
      const figure = document.createElement("figure"), canvas = document.createElement("canvas"), text = document.createElement("figcaption");
      text.textContent = caption;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", caption);
      draw(canvas, gray, Uint8Array.from(atob(values), (letter) => letter.charCodeAt(0)), index);
      figure.append(canvas, text);
      grid.append(figure);
    }
    panel.append(heading, grid);
  }
  root.addEventListener("pin", (event) => show(event.detail));
}
