// Calls of this page's own server. The token is in this module's memory alone.
let token = "";

export const useToken = (value) => { token = value; };
export const hasToken = () => token !== "";

// A call that the server refused, with its sentence and kind, or that did not reach it, which is the kind "lost".
export class Problem extends Error {
  constructor(message, code = "") {
    super(message);
    this.code = code;
  }
}

async function called(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("", "lost");
  }
  if (!answer.ok) {
    const refused = await answer.json().catch(() => null);
    throw new Problem(refused?.error?.message ?? `${answer.status} ${answer.statusText}`, refused?.error?.code);
  }
  return answer;
}

export const asked = async (path, options) => (await called(path, options)).json();
export const file = async (path) => (await called(path)).blob();

// Yields the objects of a stream of server-sent events, each of which is one line of JSON.
export async function* events(path, options) {
  const reader = (await called(path, options)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new Problem("", "lost");
    });
    if (done) break;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      if (!block.startsWith("data: ")) continue;
      const event = JSON.parse(block.slice(6));
      if (event.error) throw new Problem(event.error.message, event.error.code);
      yield event;
    }
  }
}

// A form with the files of an examination. Their names stay here: the server needs the bytes alone.
export function form(files, fields) {
  const sent = new FormData();
  for (const one of files) sent.append("file", new Blob([one]), "image");
  for (const [name, value] of Object.entries(fields)) if (value !== "" && value !== undefined) sent.append(name, value);
  return sent;
}
