/**
 * What the page asks again and again: every feed has its own pace, slower the longer it fails.
 *
 * Nothing is asked while the page is hidden, and everything at once when it is seen again.
 */

import { Failure } from "./api.js";

const EVERY_MS = 5000;
const SLOWEST_MS = 60000;
const PAUSE_MIN_MS = 250;
// An election takes a second or two: so often a feed asks again as soon as it was told to.
const PROMPT_TRIES = 3;

/**
 * One question. `data` is its last answer, `failure` why the last try had none; `isAnswered` is false before the first.
 * `isWanted`: whether it is asked.
 */
export class Feed {
  constructor(ask, isWanted = () => true) {
    this.ask = ask;
    this.isWanted = isWanted;
    this.era = 0;
    this.forget();
  }

  /** As if never asked; an answer that is on its way is thrown away. */
  forget() {
    this.era += 1;
    this.data = null;
    this.failure = null;
    this.failures = 0;
    this.isAnswered = false;
    this.due = 0;
  }

  async refresh() {
    const era = this.era;
    const [data, failure] = await this.answer();
    if (era !== this.era) return;
    if (failure === null) this.data = data;
    this.failure = failure;
    this.isAnswered = true;
    this.failures = failure === null ? 0 : this.failures + 1;
    this.due = performance.now() + pause(this.failures, failure?.retryAfterS ?? null);
  }

  async answer() {
    try {
      return [await this.ask(), null];
    } catch (failure) {
      if (!(failure instanceof Failure)) throw failure;
      return [null, failure];
    }
  }
}

/** Keeps `feeds` fresh from `start` to `stop`; calls `changed` after each answer. */
export class Feeds {
  constructor(feeds, changed) {
    this.feeds = feeds;
    this.changed = changed;
    this.run = 0;
    this.isStarted = false;
    this.isAsking = false;
    this.timer = null;
    document.addEventListener("visibilitychange", () => this.again());
  }

  start() {
    this.stop();
    this.isStarted = true;
    this.round();
  }

  /** Forgets everything that was answered. */
  stop() {
    this.run += 1;
    this.isStarted = this.isAsking = false;
    clearTimeout(this.timer);
    for (const feed of this.feeds) feed.forget();
  }

  /** Asks now what does not fail, whenever its time is. */
  again() {
    if (!this.isStarted || this.isAsking || document.hidden) return;
    clearTimeout(this.timer);
    for (const feed of this.feeds) if (feed.failures === 0) feed.due = 0;
    this.round();
  }

  async round() {
    if (document.hidden) return;
    const run = this.run;
    this.isAsking = true;
    const started = performance.now();
    const due = this.wanted().filter((feed) => feed.due <= started);
    await Promise.all(due.map((feed) => feed.refresh().then(() => run === this.run && this.changed())));
    if (run !== this.run) return;
    this.isAsking = false;
    if (due.some((feed) => feed.failure === null)) this.reconnected();
    const next = Math.min(...this.wanted().map((feed) => feed.due)) - performance.now();
    this.timer = setTimeout(() => this.round(), Math.max(next, PAUSE_MIN_MS));
  }

  /** The peer answers: what was asked in vain while it did not is asked now. */
  reconnected() {
    for (const feed of this.feeds) if (feed.failure?.status === 0) feed.due = 0;
  }

  wanted() {
    return this.feeds.filter((feed) => feed.isWanted());
  }
}

/** Milliseconds until a feed is asked again: five seconds, doubled with every failure, not sooner than it was told. */
function pause(failures, retryAfterS) {
  if (failures === 0) return EVERY_MS;
  const told = 1000 * (retryAfterS ?? 0);
  if (told > 0 && failures <= PROMPT_TRIES) return told;
  const slower = Math.min(EVERY_MS * 2 ** Math.min(failures - 1, 10), SLOWEST_MS);
  return Math.max(slower * (0.8 + 0.4 * Math.random()), told);
}
