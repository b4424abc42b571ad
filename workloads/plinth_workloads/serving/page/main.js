/* The page as a whole. Enters: /v1/models, health, and a key where one is asked for. Leaves: the form that fits what the
 * service does, once it is ready. */

import { makeChat } from "./chat.js";
import { makeClassify, makeEmbed } from "./encoders.js";
import { fetchHealth, fetchJson, pause, useKey } from "./service.js";

const LOOK_AGAIN_SECONDS = 2;
const UNAUTHORIZED = 401;
const FIRST_FIELDS = { generate: "message", classify: "classify-text", embed: "embed-text" };

const byId = (id) => document.getElementById(id);

let cards = [];
let numStarts = 0;

const model = () => byId("model").value;
const card = () => cards.find(({ id }) => id === model());
const startNewChat = makeChat({ model, onFailure });
makeClassify({ card, onFailure });
makeEmbed({ card, onFailure });

/** Look until the service says what it does, and show that; ends where a key is needed, or another start has begun. */
async function start() {
  const number = ++numStarts;
  for (;;) {
    const found = await look().catch((error) => error);
    if (number !== numStarts) return;
    if (found.status === UNAUTHORIZED) return askForKey("");
    if (found instanceof Error) say(found.message);
    else if (found.task !== null) return show(found);
    else await sayHealth();
    await pause(LOOK_AGAIN_SECONDS);
  }
}

/** What the service does: a task, null while its model is loaded; other servers of this API name none and generate. */
async function look() {
  // What follows an alias is there by its own name too.
  cards = (await fetchJson("v1/models")).data.filter(({ alias }) => !alias);
  const { task = "generate" } = cards[0];
  return { task };
}

async function sayHealth() {
  const { ready, failed, message } = await fetchHealth();
  if (!ready) say(failed ? `The service failed: ${message}` : `Not ready yet: ${message}`);
}

function show({ task }) {
  say("");
  byId("key-form").hidden = true;
  const chosen = model();
  const options = cards.map(({ id, parent }) => new Option(parent ? `${id} (adapter)` : id, id, false, id === chosen));
  byId("model").replaceChildren(...options);
  byId("model-choice").hidden = cards.length < 2;
  byId("new-chat").hidden = task !== "generate";
  for (const kind of Object.keys(FIRST_FIELDS)) byId(kind).hidden = kind !== task;
  document.title = byId("name").textContent = cards[0].id;
  showVersion();
  byId(FIRST_FIELDS[task]).focus();
}

function showVersion() {
  const { root, max_model_len: length } = card() ?? {};
  byId("version").textContent = [root, length && `${length} tokens of context`].filter(Boolean).join(" · ");
}

function askForKey(problem) {
  say("This service asks for an API key.");
  byId("key-form").hidden = false;
  byId("key-error").textContent = problem;
  byId("key").focus();
}

function say(text) {
  byId("state").textContent = text;
}

/* A key that was withdrawn, or an adapter that is no longer there: the list says what is. */
function onFailure({ status, code }) {
  if (status === UNAUTHORIZED) askForKey("");
  if (code === "model_not_found") start();
}

byId("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    useKey(byId("key").value.trim());
    await look();
  } catch (error) {
    askForKey(error.status === UNAUTHORIZED ? "The service did not accept this key." : error.message);
    return;
  }
  byId("key").value = "";
  byId("key-form").hidden = true;
  start();
});
byId("model").addEventListener("change", showVersion);
byId("new-chat").addEventListener("click", () => {
  startNewChat();
  start();
});

// A service without replicas answers once it has one.
say("Asking the service what it does.");
start();
