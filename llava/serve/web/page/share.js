// Export: a link whose fragment holds the whole view (it never leaves the browser), JSON and PNG files.

const LONGEST_LINK = 1_500_000;

/** The view as text for a link's fragment: JSON, deflated, base64url. Throws one sentence where it is too long. */
export async function packed(view) {
  const bytes = await piped(new TextEncoder().encode(JSON.stringify(view)), new CompressionStream("deflate-raw"));
  let binary = "";
  for (let start = 0; start < bytes.length; start += 8192) binary += String.fromCharCode(...bytes.subarray(start, start + 8192));
  const text = btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  if (text.length > LONGEST_LINK) throw new Error("the pictures are too large for a link: save picture and plan instead");
  return text;
}

/** The view of a link's fragment; throws one sentence for one that is cut off. */
export async function unpacked(text) {
  try {
    const binary = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
    const bytes = Uint8Array.from(binary, (letter) => letter.charCodeAt(0));
    const whole = await piped(bytes, new DecompressionStream("deflate-raw"));
    return JSON.parse(new TextDecoder().decode(whole));
  } catch {
    throw new Error("the link is damaged or cut off, so that its view cannot be restored");
  }
}

async function piped(bytes, stream) {
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());
}

export function saveJson(name, data) {
  save(name, new Blob([`${JSON.stringify(data, null, 1)}\n`], { type: "application/json" }));
}

export function savePicture(name, canvas) {
  canvas.toBlob((blob) => save(name, blob), "image/png");
}

function save(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
