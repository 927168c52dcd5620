// Requests to the server: JSON, and the stream of an answer. An error becomes one sentence.

/** The token arrives in the link's fragment, is kept for this tab, and leaves the address. */
function accessToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem("token", given);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem("token");
}

const token = accessToken();

async function send(path, body, signal) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const options = { headers, signal };
  if (body !== undefined) {
    options.method = "POST";
    options.body = JSON.stringify(body);
    headers["Content-Type"] = "application/json";
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the server does not answer: is it still running?");
  }
  if (!answer.ok) throw new Error(await sentence(answer));
  return answer;
}

async function sentence(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `the server answered ${answer.status} ${answer.statusText}`;
  }
}

/** GET without a body, POST with one; the answer's JSON. */
export const request = async (path, body, signal) => (await send(path, body, signal)).json();

/** An image of the server as a data: URL. */
export async function fetchImage(path) {
  const blob = await (await send(path)).blob();
  return readAsUrl(blob);
}

/** A file's content as a data: URL. */
export function readAsUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("the file cannot be read"));
    reader.readAsDataURL(blob);
  });
}

/** Ask for an answer; calls onChunk with every chunk of the stream, until it ends or `signal` aborts it. */
export async function streamAnswer(body, onChunk, signal) {
  const answer = await send("/v1/chat/completions", { ...body, stream: true }, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      onChunk(chunk);
    }
  }
}

export const isVideo = (url) => url.startsWith("data:video/");

/** The messages of one question about pictures and videos (data: URLs). */
export function messagesOf(question, pictures) {
  const parts = pictures.map((url) => (isVideo(url)
    ? { type: "video_url", video_url: { url } } : { type: "image_url", image_url: { url } }));
  return [{ role: "user", content: [...parts, { type: "text", text: question }] }];
}
