/* The service's API. Enters: a path and a body. Leaves: JSON, the events of a stream, or a ServiceError in words for people.
 * The only file that knows HTTP, and the only one that holds the API key: in a variable, never in storage or an address. */

let apiKey = "";

const INTRODUCTIONS = {
  400: "The request was refused",
  401: "This service needs a valid API key",
  404: "Not found",
  408: "The request came too slowly",
  413: "The request is too large",
  429: "The service is busy",
  500: "The service failed",
  503: "Not ready yet",
  504: "It took too long",
};

/** What the service refused or could not do.
 *
 * `status` is HTTP's (0: there was no answer), `code` OpenAI's, `retrySeconds` when to try again, null for never. */
export class ServiceError extends Error {
  constructor(message, { status = 0, code = null, retrySeconds = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retrySeconds = retrySeconds;
  }
}

/** Send this key from now on. Throws a ServiceError where no header can hold it. */
export function useKey(key) {
  if (!/^[\x21-\x7e]+$/.test(key)) {
    throw new ServiceError("A key has letters, digits and signs of ASCII only, and no spaces.");
  }
  apiKey = key;
}

/** The answer to a GET, or to a POST where there is a body, as JSON. Raises ServiceError. */
export async function fetchJson(path, { body, signal } = {}) {
  return (await send(path, { body, signal })).json();
}

/** As fetchJson, asked again as long as the service says when; `onWait` hears of each ServiceError before the pause. */
export async function fetchPatiently(path, { body, signal, onWait }) {
  return (await sendPatiently(path, { body, signal, onWait })).json();
}

/** The events of a streamed answer as they come, asked for as fetchPatiently does. */
export async function* streamPatiently(path, { body, signal, onWait }) {
  const response = await sendPatiently(path, { body, signal, onWait });
  for await (const line of linesOf(response, signal)) {
    if (!line.startsWith("data:")) continue;
    const data = line.slice("data:".length).trim();
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new ServiceError(`The answer broke off: ${event.error.message}`, { code: event.error.code });
    yield event;
  }
  throw new ServiceError("The answer broke off: the service closed the connection.");
}

/** What health says: whether the service is ready, whether waiting is in vain, and a sentence. */
export async function fetchHealth() {
  const response = await fetch(addressOf("health/ready"), { cache: "no-store" }).catch(() => null);
  if (response === null) return { ready: false, failed: false, message: UNREACHABLE };
  const said = await response.json().catch(() => ({}));
  return { ready: response.ok, failed: said.status === "failed", message: said.message ?? "" };
}

/** Resolve after so long; reject with the signal's reason when that comes first. */
export function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

const UNREACHABLE = "The service cannot be reached. Is it still running?";

function addressOf(path) {
  return new URL(path, document.baseURI);
}

async function sendPatiently(path, { body, signal, onWait }) {
  for (;;) {
    try {
      return await send(path, { body, signal });
    } catch (error) {
      if (!(error instanceof ServiceError) || error.retrySeconds === null) throw error;
      onWait(error);
      await pause(error.retrySeconds, signal);
    }
  }
}

async function send(path, { body, signal }) {
  const headers = {};
  if (apiKey) headers.Authorization = `Bearer ${apiKey}`;
  if (body) headers["Content-Type"] = "application/json";
  const request = { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal, cache: "no-store" };
  let response;
  try {
    response = await fetch(addressOf(path), request);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ServiceError(UNREACHABLE);
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

async function errorOf(response) {
  const { status, headers } = response;
  const detail = (await response.json().catch(() => ({}))).error ?? {};
  const retryAfter = Number(headers.get("Retry-After"));
  const retrySeconds = [429, 503].includes(status) && retryAfter > 0 ? retryAfter : null;
  const introduction = INTRODUCTIONS[status] ?? `The service answered ${status}`;
  const reason = detail.message && status !== 401 ? `: ${detail.message}` : "";
  const id = status === 500 ? ` (request ${headers.get("X-Request-Id")})` : "";
  return new ServiceError(`${introduction}${reason}${id}`, { status, code: detail.code ?? null, retrySeconds });
}

async function* linesOf(response, signal) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ServiceError("The answer broke off: the connection was lost.");
    }
    if (piece.done) return;
    const lines = (held + piece.value).split("\n");
    held = lines.pop();
    yield* lines;
  }
}
