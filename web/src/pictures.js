// What goes along with a message besides text: pictures above all, which are made small here and are shown large when one asks for it.
import { dialog } from "./store.js";
import { html, Icon } from "./ui.js";
import { t } from "./words.js";

const LONGEST = 1568; // pixels of the longest side: models that see make larger pictures smaller themselves
const MOST_BYTES = 700_000; // of one picture
export const MOST_PICTURES = 6; // in one message, which is then well below the server's 8 MB
const SHOWN = /^data:image\/(png|jpeg|gif|webp|avif|bmp)[;,]/i; // of our own server, and of forms that run nothing

/** The picture in a file as a data: URL, without what cameras write beside it; null where the browser sees none. */
export async function pictureOf(file) {
  if (!file.type.startsWith("image/") || file.type === "image/svg+xml") return null;
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) return null;
  const forms = [["image/jpeg", 0.85], ["image/jpeg", 0.65]];
  if (file.type !== "image/jpeg") forms.unshift(["image/png"]); // drawings and what lets through
  try {
    for (let longest = LONGEST; ; longest /= 2) {
      const canvas = drawn(bitmap, longest);
      for (const [type, quality] of forms) {
        if (type === "image/jpeg") onWhite(canvas);
        const blob = await new Promise((resolve) => canvas.toBlob(resolve, type, quality));
        if (blob && blob.size <= MOST_BYTES) return await urlOf(blob);
      }
    }
  } finally {
    bitmap.close();
  }
}

function drawn(bitmap, longest) {
  const scale = Math.min(1, longest / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/** A JPEG lets nothing through, and would be black there. */
function onWhite(canvas) {
  const context = canvas.getContext("2d");
  context.globalCompositeOperation = "destination-over";
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
}

function urlOf(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

export const partOf = (url) => ({ type: "image_url", image_url: { url } });

/** The parts of a message that are no text. */
export const beside = (message) => (message.parts ?? []).filter((part) => part.type !== "text");

const enlarge = (url, name) => (dialog.value = { title: name, wide: true, body: () => html`<img class="large" src=${url} alt=${name} />` });

/** What goes along with a message that was said. A picture from elsewhere is a link, and is not loaded by itself. */
export function Beside({ parts }) {
  const pictures = parts.filter((part) => part.image_url);
  const others = parts.filter((part) => !part.image_url);
  return html`
    ${pictures.length > 0 && html`
      <ul class="pictures">${pictures.map((part, at) => {
        const { url } = part.image_url;
        const name = pictures.length > 1 ? t("pictureOf", { at: at + 1, of: pictures.length }) : t("picture");
        return html`<li key=${at}>${SHOWN.test(url)
          ? html`<button type="button" title=${t("enlarge")} onClick=${() => enlarge(url, name)}><img src=${url} alt=${name} /></button>`
          : /^https?:/i.test(url)
            ? html`<a class="remote" href=${url} target="_blank" rel="noopener noreferrer nofollow" title=${t("remoteImage")}>↗ ${name}</a>`
            : name}</li>`;
      })}</ul>`}
    ${others.length > 0 && html`
      <ul class="files">${others.map((part, at) => html`<li key=${at}><${Icon} name="file" size=${14} />${part.file?.filename ?? t(part.input_audio ? "sound" : "file")}</li>`)}</ul>`}`;
}
