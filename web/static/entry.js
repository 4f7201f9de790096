/** The way in: claiming the mesh with the code of the set-up link, where to find that link, and signing in. */

import { insist, read, signedIn, whoAmI } from "./api.js";
import { at, list, make, say, show } from "./page.js";
import { t } from "./words.js";

const LOOK_MS = 5000;
const PASSWORD_LENGTH_MIN = 8;
// What the peer prints: anything else is no code, and may be no header value either.
const CODE = /^[\x21-\x7e]{1,200}$/;

/** The code of `#setup=<code>`, taken out of the address bar so that nobody reads or shares it there; null without. */
export function takenCode() {
  const match = /^#setup=([^&]*)/.exec(location.hash);
  if (match === null) return null;
  history.replaceState(null, "", location.pathname + location.search);
  return match[1];
}

/** Shows the form that fits, until somebody is in: then calls `entered` with the user. */
export class Entry {
  constructor(entered) {
    this.entered = entered;
    this.code = null;
    this.timer = null;
    this.visit = 0;
    this.machines = null;
    this.ticked = new Set();
    this.note = null;
    this.reproach = null;
    at("setup-form").addEventListener("submit", (event) => this.submit(event, () => this.claim()));
    at("sign-in-form").addEventListener("submit", (event) => this.submit(event, () => this.signIn()));
    say("where-link", `${location.origin}/dashboard#setup=…`);
  }

  /** Somebody comes who is not signed in, perhaps with a code. `note` names what to tell at the sign-in form. */
  arrive(code = null, note = null) {
    this.leave();
    this.code = code;
    this.note = note;
    this.reproach = null;
    this.machines = null;
    this.ticked.clear();
    list(at("setup-machines"), [], null, null);
    for (const form of [at("setup-form"), at("sign-in-form")]) form.reset();
    this.translated();
    this.look();
  }

  /** Hides all forms and asks no more. */
  leave() {
    this.visit += 1;
    clearTimeout(this.timer);
    this.only(null);
  }

  /** After the language changed. */
  translated() {
    say("sign-in-note", this.note === null ? "" : t(this.note));
    say("where-error", this.reproach === null ? "" : t(this.reproach));
    for (const id of ["setup-error", "sign-in-error"]) say(id, "");
    this.showYours();
  }

  /** Asks whether the mesh has an owner, and again while it has none. */
  async look() {
    const visit = this.visit;
    const setup = await this.setup();
    if (visit !== this.visit) return;
    if (setup !== null) this.follow(setup);
    const again = () => visit === this.visit && this.look();
    if (setup?.needed !== false) this.timer = setTimeout(() => whenSeen(again), LOOK_MS);
  }

  /** What the peer says of the set-up; null when it says nothing now. */
  async setup() {
    try {
      const found = await this.answer();
      say("banner", "");
      return found;
    } catch (failure) {
      if (![0, 429, 503].includes(failure.status)) return { needed: false };
      say("banner", failure.status === 429 ? t("fail_tries") : t("retrying", { message: failure.told }));
      return null;
    }
  }

  async answer() {
    const path = "/api/auth/setup";
    if (this.code === null) return read(path);
    if (!CODE.test(this.code)) return { ...(await read(path)), machines: undefined };
    try {
      return await read(path, { "x-setup-code": this.code });
    } catch (failure) {
      if (failure.status !== 403) throw failure;
      return { ...(await read(path)), machines: undefined };
    }
  }

  follow(setup) {
    if (setup.needed !== true) {
      if (this.code !== null) this.note = "note_claimed";
      this.only("sign-in", "sign-in-username");
    } else if (this.code !== null && Array.isArray(setup.machines)) {
      this.only("setup", "setup-title");
      this.learn(setup.machines);
      return;
    } else {
      if (this.code !== null) this.reproach ??= "fail_link";
      this.only("where", "where-title");
    }
    this.code = null;
    this.translated();
  }

  /** Shows this section alone; `focus` gets the focus when it was not there before. */
  only(section, focus) {
    const isNew = section !== null && at(section).hidden;
    for (const each of ["setup", "sign-in", "where"]) show(each, each === section);
    if (isNew) at(focus).focus();
  }

  // -- claiming

  /** No machine is ticked before a person does it: anybody on the network may have come in. Late ones are marked. */
  learn(machines) {
    const before = this.machines;
    const isLate = (id) => before !== null && before.find((machine) => machine.id === id)?.isLate !== false;
    const named = machines.map((machine) => ({ id: String(machine.id), name: String(machine.name) }));
    this.machines = named.map((machine) => ({ ...machine, isLate: isLate(machine.id) }));
    this.showYours();
  }

  showYours() {
    const machines = this.machines ?? [];
    list(at("setup-machines"), machines, (machine) => machine.id, (machine) => this.tickable(machine));
    show("setup-yours", machines.length > 0);
  }

  tickable({ id, name, isLate }) {
    const box = make("input", { type: "checkbox", value: id });
    box.checked = this.ticked.has(id);
    box.addEventListener("change", () => (box.checked ? this.ticked.add(id) : this.ticked.delete(id)));
    const late = isLate && make("span", { class: "badge" }, t("came_later"));
    const about = make("span", {}, make("b", {}, name), " ", make("code", {}, id.slice(0, 8)), " ", late);
    return make("li", {}, make("label", { class: "tick" }, box, " ", about));
  }

  async claim() {
    const form = at("setup-form");
    const [username, password, repeat] = ["username", "password", "repeat"].map((name) => form.elements[name].value);
    if (username.trim() === "") return wrong("setup", "username", t("fail_username"));
    if ([...password].length < PASSWORD_LENGTH_MIN) return wrong("setup", "password", t("fail_short"));
    if (password !== repeat) return wrong("setup", "repeat", t("fail_repeat"));
    const confirm = this.machines.filter((machine) => this.ticked.has(machine.id)).map((machine) => machine.id);
    const body = { code: this.code, username: username.trim(), password, confirm };
    try {
      const answer = await insist("POST", "/api/auth/setup", body, () => say("setup-error", t("choosing")));
      return await this.enter(answer);
    } catch (failure) {
      if (failure.status === 409 && !(await isOwnerless())) return this.arrive(null, "note_claimed");
      const told = { 403: t("fail_link"), 429: t("fail_tries") }[failure.status];
      return wrong("setup", null, told ?? failure.told);
    }
  }

  // -- signing in

  async signIn() {
    const form = at("sign-in-form");
    const [username, password] = ["username", "password"].map((name) => form.elements[name].value);
    if (username.trim() === "") return wrong("sign-in", "username", t("fail_username"));
    if (password === "") return wrong("sign-in", "password", t("fail_password"));
    const body = { username: username.trim(), password };
    try {
      return await this.enter(await insist("POST", "/api/auth/login", body, () => say("sign-in-error", t("busy"))));
    } catch (failure) {
      const told = { 401: t("fail_login"), 429: t("fail_tries") }[failure.status];
      return wrong("sign-in", failure.status === 401 ? "password" : null, told ?? failure.told);
    }
  }

  async enter(answer) {
    const user = signedIn(answer) ?? (await whoAmI());
    for (const form of [at("setup-form"), at("sign-in-form")]) form.reset();
    this.code = null;
    this.entered(user);
  }

  /** Runs what a form is for, once at a time. */
  async submit(event, act) {
    event.preventDefault();
    const form = event.target;
    const button = form.querySelector("[type=submit]");
    if (button.disabled) return;
    for (const field of form.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
    say(form.querySelector("[role=alert]").id, "");
    button.disabled = true;
    try {
      await act();
    } finally {
      button.disabled = false;
    }
  }
}

/** True when the mesh still has no administrator: then somebody else was not the reason why a claim was refused. */
async function isOwnerless() {
  const setup = await read("/api/auth/setup").catch(() => null);
  return setup?.needed === true;
}

/** Runs `act` now, or when the page is looked at again. */
function whenSeen(act) {
  if (!document.hidden) act();
  else document.addEventListener("visibilitychange", () => whenSeen(act), { once: true });
}

/** Says at the form what is wrong, and leads to the field that is meant. */
function wrong(form, name, message) {
  say(`${form}-error`, message);
  if (name === null) return;
  const field = at(`${form}-${name}`);
  field.setAttribute("aria-invalid", "true");
  field.focus();
}
