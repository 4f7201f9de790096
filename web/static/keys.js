/** API keys, for administrators: the list, a new one (its secret is shown once), and deleting one. */

import { change, insist } from "./api.js";
import { cell, isFilled, rows } from "./home.js";
import { at, copy, list, make, say, show } from "./page.js";
import { moment, t } from "./words.js";

export class Keys {
  /** `changed` is called after a key came or went. */
  constructor(changed) {
    this.changed = changed;
    this.doomed = null;
    at("key-form").addEventListener("submit", (event) => this.create(event));
    at("key-made-copy").addEventListener("click", () => this.copy());
    at("key-made-done").addEventListener("click", () => this.hide());
    at("key-made").addEventListener("close", () => this.hide());
    at("key-delete-no").addEventListener("click", () => at("key-delete").close());
    at("key-delete-yes").addEventListener("click", () => this.delete());
  }

  /** Shows the section to administrators, with what the feed holds. */
  show(user, feed) {
    show("keys-section", user.role === "admin");
    const keys = rows(feed.data);
    show("keys", isFilled("keys-note", feed, keys.length === 0, t("keys_none")));
    list(at("keys").tBodies[0], keys, (key) => key.id, (key) => this.row(key));
  }

  /** Nobody is signed in: no secret stays behind. */
  leave() {
    this.hide();
    at("key-delete").close();
    at("key-form").reset();
    say("key-error", "");
  }

  row(key) {
    const which = make("span", { class: "unseen" }, ` ${key.name}`);
    const button = make("button", { type: "button" }, t("key_delete"), which);
    button.addEventListener("click", () => this.confirm(key));
    const expires = key.expired ? t("expired") : key.expires_at ? moment(key.expires_at) : t("never");
    return make(
      "tr",
      { role: "row" },
      cell("name", String(key.name)),
      cell("begins_with", make("code", {}, String(key.prefix ?? key.id))),
      cell("scopes", Array.isArray(key.scopes) ? key.scopes.join(", ") : "–"),
      cell("made", moment(key.created_at), "time"),
      cell("expires", expires, "time"),
      cell("actions", button, "action"),
    );
  }

  // -- a new one

  async create(event) {
    event.preventDefault();
    const form = at("key-form");
    const button = form.querySelector("[type=submit]");
    const name = form.elements.name.value.trim();
    const scopes = Array.from(form.querySelectorAll("[name=scope]:checked"), (box) => box.value);
    form.elements.name.setAttribute("aria-invalid", String(name === ""));
    say("key-error", name === "" ? t("fail_key_name") : scopes.length === 0 ? t("fail_key_scopes") : "");
    if (name === "") form.elements.name.focus();
    if (name === "" || scopes.length === 0 || button.disabled) return;
    button.disabled = true;
    try {
      const made = await change("POST", "/api/api-keys", { name, scopes });
      form.reset();
      this.reveal(String(made?.key ?? ""));
      this.changed();
    } catch (failure) {
      say("key-error", failure.told);
    } finally {
      button.disabled = false;
    }
  }

  reveal(secret) {
    at("key-made-value").value = secret;
    say("key-made-note", "");
    at("key-made").showModal();
    at("key-made-value").select();
  }

  async copy() {
    const isCopied = await copy(at("key-made-value").value, at("key-made"));
    say("key-made-note", isCopied ? t("copied") : t("copy_failed"));
    if (!isCopied) at("key-made-value").select();
  }

  /** Closes the dialog, however that began, and keeps no copy. */
  hide() {
    at("key-made-value").value = "";
    at("key-made").close();
  }

  // -- one less

  confirm(key) {
    this.doomed = key;
    say("key-delete-title", t("key_delete_title", { name: key.name }));
    say("key-delete-error", "");
    at("key-delete").showModal();
  }

  async delete() {
    const { id, name } = this.doomed;
    const button = at("key-delete-yes");
    button.disabled = true;
    try {
      const path = `/api/api-keys/${encodeURIComponent(id)}`;
      await insist("DELETE", path, undefined, () => say("key-delete-error", t("choosing"))).catch(unlessGone);
      at("key-delete").close();
      say("said", t("key_deleted", { name }));
      at("keys-title").focus();
      this.changed();
    } catch (failure) {
      say("key-delete-error", failure.told);
    } finally {
      button.disabled = false;
    }
  }
}

/** Whoever deleted it before us wanted the same. */
function unlessGone(failure) {
  if (failure.status !== 404) throw failure;
}
