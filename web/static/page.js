/**
 * Building blocks of the page. Whatever a peer, a model or a person said comes in as text and stays text.
 */

import { spoken, t } from "./words.js";

const shown = new WeakMap();

/** The element of the page with this id. */
export function at(id) {
  return document.getElementById(id);
}

/** A new element: `properties` are attributes, children are elements or text; null and false are left out. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null && child !== false));
  return element;
}

/** Writes `text` into the element with this id, if it is another one: what did not change is not read out again. */
export function say(id, text) {
  const element = at(id);
  if (element.textContent !== text) element.textContent = text;
}

/** Shows the element with this id, or hides it. */
export function show(id, isShown) {
  at(id).hidden = !isShown;
}

/** Puts the texts of the language that is spoken into everything that names one. */
export function translate() {
  document.documentElement.lang = spoken();
  for (const element of document.querySelectorAll("[data-t]")) element.replaceChildren(...phrase(t(element.dataset.t)));
}

/** One of our own texts as elements: what stands between backticks is to be typed. */
export function phrase(text) {
  return text.split("`").map((part, index) => (index % 2 === 1 ? make("code", {}, part) : part));
}

/**
 * Makes the children of `parent` show `items`: one each, by `keyOf`. Only what is new or different is built, so that
 * focus, selection and what a screen reader reads stay where they are.
 */
export function list(parent, items, keyOf, build) {
  const before = new Map(Array.from(parent.children, (child) => [shown.get(child)?.key, child]));
  const after = new Set();
  items.forEach((item, index) => {
    const key = String(keyOf(item));
    const content = spoken() + JSON.stringify(item);
    let child = before.get(key);
    if (child === undefined || after.has(child) || shown.get(child).content !== content) {
      const built = build(item);
      shown.set(built, { key, content });
      if (child !== undefined && !after.has(child)) replace(child, built);
      child = built;
    }
    after.add(child);
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
  });
  for (const child of Array.from(parent.children)) if (!after.has(child)) child.remove();
}

/** Puts `text` on the clipboard; false when the browser refuses. `inside` is the open dialog, or the body. */
export async function copy(text, inside) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // A page over plain http from another machine has no clipboard; this old way works there too.
  }
  const area = make("textarea", { class: "unseen", readonly: "", "aria-hidden": "true" });
  const focused = document.activeElement;
  area.value = text;
  inside.append(area);
  area.select();
  const isCopied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return isCopied;
}

function replace(child, built) {
  const hadFocus = child.contains(document.activeElement);
  child.replaceWith(built);
  if (hadFocus) built.querySelector("button, input")?.focus();
}
