/* One question and its answer as nodes of the page. Enters: text as it comes, figures, an error. Leaves: an <article>.
 * Whatever a model says is set as text, never as HTML; of Markdown only fences of code are told apart. */

const FENCE = /^ {0,3}```/;

/** An element with a class, text and children. */
export function element(tag, { name = "", text = "", children = [] } = {}) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

/** A text as pieces in their order: { code, text }. A fence that is still open is code to the end. */
export function piecesOf(text) {
  const pieces = [{ code: false, lines: [] }];
  for (const line of text.split("\n")) {
    const last = pieces.at(-1);
    if (FENCE.test(line)) pieces.push({ code: !last.code, lines: [] });
    else last.lines.push(line);
  }
  const told = pieces.map(({ code, lines }) => ({ code, text: lines.join("\n") }));
  return told.filter((piece) => piece.code || piece.text.trim());
}

export class Exchange {
  #text = "";
  #isShown = true;
  #answer = element("div", { name: "text" });
  #notice = element("p", { name: "quiet" });
  #foot = element("footer", { children: [this.#notice] });
  #said;

  /** Begin with what was asked; `asker` and `answerer` are how the page calls them. */
  constructor(question, { asker, answerer }) {
    this.#said = element("section", { name: "answer", children: [who(answerer), this.#answer, this.#foot] });
    // Read out when it is whole, not token by token.
    this.#said.setAttribute("aria-busy", "true");
    const words = element("div", { name: "text", text: question });
    const asked = element("section", { name: "question", children: [who(asker), words] });
    this.node = element("article", { children: [asked, this.#said] });
  }

  /** What the answer says so far. */
  get text() {
    return this.#text;
  }

  /** Add to the answer; it is shown with the next frame. */
  append(text) {
    this.#text += text;
    this.#notice.textContent = "";
    if (!this.#isShown) return;
    this.#isShown = false;
    requestAnimationFrame(() => this.#show());
  }

  /** Say what is waited for. */
  wait(sentence) {
    this.#notice.textContent = sentence;
  }

  /** The answer is whole, or as whole as it will be; `figures` are said below it. */
  finish(figures) {
    this.#show();
    this.#said.setAttribute("aria-busy", "false");
    this.#notice.textContent = figures;
    if (this.#text) this.#foot.append(copyButton(() => this.#text));
  }

  /** It went wrong: a sentence, and what asks again. */
  fail(sentence, askAgain) {
    this.finish("");
    const again = element("button", { text: "Try again" });
    again.type = "button";
    again.addEventListener("click", askAgain);
    const alert = element("p", { name: "error", text: sentence });
    alert.setAttribute("role", "alert");
    this.#said.insertBefore(alert, this.#foot);
    this.#foot.append(again);
  }

  #show() {
    this.#isShown = true;
    const pieces = piecesOf(this.#text);
    pieces.forEach((piece, index) => {
      let node = this.#answer.children[index];
      if (node?.dataset.code !== String(piece.code)) {
        const made = pieceNode(piece);
        if (node) node.replaceWith(made);
        else this.#answer.append(made);
        node = made;
      }
      const shown = node.querySelector("code") ?? node;
      if (shown.textContent !== piece.text) shown.textContent = piece.text;
    });
    while (this.#answer.children.length > pieces.length) this.#answer.lastElementChild.remove();
  }
}

function who(name) {
  return element("h2", { name: "quiet", text: name });
}

function pieceNode({ code }) {
  const shown = element("code");
  const made = code ? element("div", { name: "code", children: [element("pre", { children: [shown] })] }) : element("p");
  if (code) made.append(copyButton(() => shown.textContent));
  made.dataset.code = String(code);
  return made;
}

function copyButton(textOf) {
  const button = element("button", { name: "copy", text: "Copy" });
  button.type = "button";
  button.addEventListener("click", async () => {
    await copy(textOf());
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}

async function copy(text) {
  // Browsers have the clipboard on https and on this machine only; a service is often reached by plain http.
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const held = element("textarea", { name: "unseen" });
  held.value = text;
  document.body.append(held);
  held.select();
  document.execCommand("copy");
  held.remove();
}
