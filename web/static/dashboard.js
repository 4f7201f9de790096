/**
 * The page: who is there, and what they see.
 *
 *     nobody is in: entry.js (set-up, sign-in)      somebody is: home.js and keys.js show what feeds.js asks for
 *     api.js asks the peer, page.js builds elements, words.js has the texts
 */

import { change, read, signedOut, whoAmI } from "./api.js";
import { Entry, takenCode } from "./entry.js";
import { Feed, Feeds } from "./feeds.js";
import { isChoosing, showHome } from "./home.js";
import { Keys } from "./keys.js";
import { at, copy, say, show, translate } from "./page.js";
import { otherLanguage, switchLanguage, t } from "./words.js";

const ASK_AGAIN_MS = 3000;

class Dashboard {
  constructor() {
    this.user = null;
    this.visit = 0;
    this.entry = new Entry((user) => this.enter(user));
    this.keys = new Keys(() => this.feeds.again());
    const isAdmin = () => this.user?.role === "admin";
    this.feed = {
      me: new Feed(whoAmI),
      mesh: new Feed(() => read("/api/mesh")),
      agents: new Feed(() => read("/api/agents")),
      overview: new Feed(() => read("/api/dashboard/overview")),
      requests: new Feed(() => read("/api/dashboard/request-responses?page=1&per_page=10")),
      keys: new Feed(() => read("/api/api-keys"), isAdmin),
    };
    this.feeds = new Feeds(Object.values(this.feed), () => this.heard());
    at("sign-out").addEventListener("click", () => this.signOut());
    at("language").addEventListener("click", () => this.speak());
    at("copy-url").addEventListener("click", () => this.copyUrl());
    addEventListener("hashchange", () => this.openAgain());
    say("base-url", `${location.origin}/v1`);
  }

  /** Finds out who is there; `code` is that of a set-up link, null without one. */
  async open(code) {
    if (this.user !== null) return;
    const visit = (this.visit += 1);
    let user = null;
    try {
      user = await whoAmI();
      say("banner", "");
    } catch (failure) {
      if (failure.status === 0 || failure.status === 503) {
        say("banner", t("retrying", { message: failure.told }));
        setTimeout(() => visit === this.visit && this.open(code), ASK_AGAIN_MS);
        return;
      }
    }
    if (visit !== this.visit) return;
    if (user !== null) this.enter(user);
    else this.entry.arrive(code);
  }

  /** A set-up link was opened where the page is already: only the fragment changed. */
  openAgain() {
    const code = takenCode();
    if (code !== null) this.open(code);
  }

  // -- somebody is in

  enter(user) {
    if (user === null) return void this.entry.arrive(null, "note_session_over");
    this.entry.leave();
    this.user = user;
    show("home", true);
    show("who", true);
    this.render();
    at("machines-title").focus();
    this.feeds.start();
  }

  leave(note) {
    this.feeds.stop();
    this.keys.leave();
    this.render();
    this.user = null;
    signedOut();
    say("banner", "");
    show("home", false);
    show("who", false);
    this.entry.arrive(null, note);
  }

  /** A feed was answered. */
  heard() {
    const feeds = Object.values(this.feed);
    const { me } = this.feed;
    const isNobody = me.isAnswered && me.failure === null && me.data === null;
    if (isNobody || feeds.some((feed) => feed.failure?.status === 401)) return this.leave("note_session_over");
    if (me.data !== null) this.user = me.data;
    return this.render();
  }

  render() {
    const feeds = Object.values(this.feed);
    const isOffline = this.feed.me.failure?.status === 0;
    const choosing = isChoosing(feeds, this.feed.mesh) ? t("choosing") : "";
    say("banner", isOffline ? t("offline") : choosing);
    at("home").classList.toggle("stale", isOffline);
    const role = t(this.user.role === "admin" ? "role_admin" : "role_viewer");
    say("user-name", t("signed_in_as", { name: this.user.username, role }));
    showHome(this.feed);
    this.keys.show(this.user, this.feed.keys);
  }

  async signOut() {
    try {
      await change("POST", "/api/auth/logout");
    } catch (failure) {
      if (failure.status !== 401) return say("banner", failure.told);
    }
    return this.leave("note_signed_out");
  }

  async copyUrl() {
    say("said", (await copy(at("base-url").textContent, document.body)) ? t("copied") : t("copy_failed"));
  }

  // -- languages

  speak() {
    switchLanguage();
    this.translated();
  }

  translated() {
    translate();
    say("language", t("language_other"));
    at("language").lang = otherLanguage();
    this.entry.translated();
    if (this.user !== null) this.render();
  }
}

const code = takenCode();
const dashboard = new Dashboard();
dashboard.translated();
dashboard.open(code);
