// Each answer is an element with its data in an attribute: Gradio puts HTML on the page without running scripts in it.
function addDownload(list, label, name, blobOf) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = label;
  button.addEventListener("click", async () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await blobOf());
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
  list.append(button);
}
function pictureOf(root) {
  const image = root.querySelector("img.colors"), canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  canvas.getContext("2d").drawImage(image, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}
function start() {
  const root = element.querySelector(".segments[data-page]");
  if (!root) return;
  const data = JSON.parse(root.dataset.page);
  root.removeAttribute("data-page");
  const list = document.createElement("p");
  list.className = "files";
  list.append("Download ");
  for (const { label, name, kind, content } of data.files) {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    addDownload(list, label, name, () => new Blob([bytes], { type: kind }));
  }
  addDownload(list, "picture (PNG)", data.picture, () => pictureOf(root));
  root.insertBefore(list, root.querySelector(".list").nextSibling);
  connect(root, data);
}
watch("value", start);
start();
