/* The forms of services that read: classify and embed. Enters: texts. Leaves: labels or similarities as bars with numbers. */

import { element } from "./exchange.js";
import { fetchPatiently } from "./service.js";

/** Make the form of #classify ask; `card()` is what /v1/models says of the model, `onFailure` hears of each error. */
export function makeClassify({ card, onFailure }) {
  makeForm(document.getElementById("classify"), onFailure, async (ask) => {
    const [input] = textsOf("classify-text");
    if (!input) return null;
    const [found] = (await ask("v1/classify", { model: card().id, input })).data;
    if (found.value !== undefined) return element("p", { text: `Value: ${found.value.toPrecision(4)}` });
    const chosen = found.labels ?? [found.label];
    return bars(found.probs.map((share, index) => ({ name: card().labels[index], share })), { percent: true, chosen });
  });
}

/** Make the form of #embed ask; as makeClassify. */
export function makeEmbed({ card, onFailure }) {
  makeForm(document.getElementById("embed"), onFailure, async (ask) => {
    const texts = [...textsOf("embed-text"), ...textsOf("embed-others", "\n")];
    if (texts.length < 2) return element("p", { text: "Give a text, and at least one to compare it with." });
    const body = { model: card().id, input: texts, encoding_format: "float" };
    const [first, ...others] = (await ask("v1/embeddings", body)).data.map(({ embedding }) => embedding);
    return bars(others.map((other, index) => ({ name: texts[index + 1], share: cosine(first, other) })), {});
  });
}

function makeForm(main, onFailure, outcomeOf) {
  const outcome = main.querySelector(".outcome");
  const button = main.querySelector("button");
  const say = (text, name) => outcome.replaceChildren(element("p", { name, text }));
  const ask = (path, body) => {
    const onWait = (error) => say(`${error.message}. Trying again in ${error.retrySeconds} s.`, "quiet");
    return fetchPatiently(path, { body, onWait });
  };
  main.querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      outcome.replaceChildren(...[await outcomeOf(ask)].filter(Boolean));
    } catch (error) {
      say(error.message, "error");
      onFailure(error);
    } finally {
      button.disabled = false;
    }
  });
}

function textsOf(id, separator = null) {
  const { value } = document.getElementById(id);
  return (separator ? value.split(separator) : [value]).map((text) => text.trim()).filter(Boolean);
}

function bars(rows, { percent = false, chosen = [] }) {
  const sorted = rows.toSorted((one, other) => other.share - one.share);
  return element("ul", { name: "bars", children: sorted.map((row) => bar(row, percent, chosen.includes(row.name))) });
}

function bar({ name, share }, percent, isChosen) {
  const drawn = element("span", { name: "bar" });
  drawn.setAttribute("aria-hidden", "true");
  drawn.style.setProperty("--share", Math.max(0, share));
  const number = percent ? `${(share * 100).toFixed(1)} %` : share.toFixed(3);
  const children = [element("span", { text: name }), drawn, element("span", { name: "number", text: number })];
  return element("li", { name: isChosen ? "chosen" : "", children });
}

function cosine(one, other) {
  const product = (left, right) => left.reduce((sum, value, index) => sum + value * right[index], 0);
  return product(one, other) / Math.sqrt(product(one, one) * product(other, other));
}
