/* The conversation with a model that generates. Enters: what is typed and set. Leaves: requests for completions, and their
 * answers on the page with tokens and times. Only what was answered is said again in the next request. */

import { Exchange } from "./exchange.js";
import { streamPatiently } from "./service.js";

/* OpenAI's default for completions, 16, shows little of a model. */
const COMPLETION_TOKENS = 64;

/* Whoever has scrolled further up than this reads, and is left there. */
const NEAR_END_PIXELS = 120;

const byId = (id) => document.getElementById(id);

/** Make the form of #generate ask a model; the function that comes back begins a new chat.
 *
 * `model()` names the one that is asked, `onFailure(error)` hears of every error, which the page has shown already. */
export function makeChat({ model, onFailure }) {
  const log = byId("conversation");
  const follow = followerOf(log);
  let turns = [];
  let running = null;

  async function ask(question) {
    const stopping = new AbortController();
    const isChat = byId("mode-chat").checked;
    const exchange = new Exchange(question, { asker: isChat ? "You" : "Text", answerer: model() });
    begin(stopping);
    follow(exchange.node);
    log.append(exchange.node);
    let failure = null;
    try {
      await answer(exchange, bodyOf(model(), isChat, isChat ? [...turns, turn("user", question)] : question), stopping.signal);
    } catch (error) {
      failure = error;
    }
    end(stopping);
    if (failure?.code === "no_chat_template" && exchange.node.isConnected) return askAsText(exchange, question);
    if (failure && stopping.signal.aborted) exchange.finish("stopped");
    else if (failure) fail(exchange, question, failure);
    if (isChat && exchange.text && exchange.node.isConnected) {
      turns.push(turn("user", question), turn("assistant", exchange.text));
    }
  }

  async function answer(exchange, body, signal) {
    const times = { began: performance.now(), first: null, last: null };
    const onWait = (error) => {
      exchange.wait(`${error.message}. Trying again in ${error.retrySeconds} s.`);
      times.began = performance.now() + error.retrySeconds * 1000;
    };
    let usage = null;
    let reason = null;
    const path = body.messages ? "v1/chat/completions" : "v1/completions";
    for await (const event of streamPatiently(path, { body, signal, onWait })) {
      usage = event.usage ?? usage;
      const choice = event.choices?.[0];
      const text = choice?.delta?.content ?? choice?.text;
      reason = choice?.finish_reason ?? reason;
      if (!text) continue;
      times.last = performance.now();
      times.first ??= times.last;
      exchange.append(text);
    }
    exchange.finish(figuresOf(exchange.text, usage, reason, times));
  }

  function askAsText(exchange, question) {
    exchange.node.remove();
    byId("mode-text").checked = true;
    byId("mode-chat").disabled = true;
    showMode();
    byId("state").textContent = "This model has no chat template, so it goes on with your text instead of answering it.";
    return ask(question);
  }

  function fail(exchange, question, error) {
    exchange.fail(error.message, () => {
      if (running) return;
      exchange.node.remove();
      ask(question);
    });
    onFailure(error);
  }

  function begin(stopping) {
    running = stopping;
    showRunning();
  }

  function end(stopping) {
    if (running === stopping) running = null;
    showRunning();
  }

  function showRunning() {
    byId("send").hidden = running !== null;
    byId("stop").hidden = running === null;
  }

  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const message = byId("message");
    if (running || !message.value.trim()) return;
    ask(message.value);
    message.value = "";
  });
  byId("message").addEventListener("keydown", (event) => {
    // An input method takes Enter for itself while it composes.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    byId("ask").requestSubmit();
  });
  byId("stop").addEventListener("click", () => {
    running?.abort();
    byId("message").focus();
  });
  for (const id of ["mode-chat", "mode-text"]) byId(id).addEventListener("change", showMode);

  return () => {
    running?.abort();
    running = null;
    turns = [];
    log.replaceChildren();
    showRunning();
    byId("message").focus();
  };
}

function showMode() {
  const isChat = byId("mode-chat").checked;
  byId("system-label").hidden = !isChat;
  byId("message").placeholder = isChat ? "Ask something" : "Begin a text";
  byId("max-tokens").placeholder = isChat ? "what fits" : String(COMPLETION_TOKENS);
}

/** What scrolls to the end of a log while a node in it grows, until somebody scrolls up. */
function followerOf(log) {
  let isAtEnd = true;
  let top = 0;
  const toEnd = () => {
    if (isAtEnd) log.scrollTop = log.scrollHeight;
  };
  const growth = new ResizeObserver(toEnd);
  log.addEventListener("scroll", () => {
    const isNear = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_END_PIXELS;
    // Of our own scrolling the browser tells when the end is further down already; only people scroll up.
    isAtEnd = isNear || (isAtEnd && log.scrollTop >= top);
    top = log.scrollTop;
  });
  return (node) => {
    isAtEnd = true;
    growth.disconnect();
    growth.observe(node);
  };
}

function turn(role, content) {
  return { role, content };
}

function bodyOf(model, isChat, said) {
  const body = { model, stream: true, stream_options: { include_usage: true } };
  const settings = { temperature: "temperature", top_p: "top-p", max_tokens: "max-tokens" };
  for (const [name, id] of Object.entries(settings)) {
    const { valueAsNumber } = byId(id);
    if (!Number.isNaN(valueAsNumber)) body[name] = valueAsNumber;
  }
  if (!isChat) return { max_tokens: COMPLETION_TOKENS, ...body, prompt: said };
  const system = byId("system").value.trim();
  return { ...body, messages: system ? [turn("system", system), ...said] : said };
}

/** Tokens and times of an answer. The rate counts from the question: tokens may come in bursts, which would give any other. */
function figuresOf(text, usage, reason, { began, first, last }) {
  const said = text ? [] : ["no text"];
  if (usage) said.push(counted(usage.completion_tokens, "token"));
  if (first !== null) said.push(`first after ${seconds(first - began)}`);
  if (usage && last !== null) said.push(`${rounded(usage.completion_tokens / ((last - began) / 1000))} tokens/s`);
  if (usage) said.push(`prompt of ${counted(usage.prompt_tokens, "token")}`);
  if (reason === "length") said.push("cut off: no more tokens allowed");
  return said.join(" · ");
}

function rounded(rate) {
  return rate.toFixed(rate < 10 ? 1 : 0);
}

function counted(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

function seconds(milliseconds) {
  return `${(milliseconds / 1000).toFixed(2)} s`;
}
