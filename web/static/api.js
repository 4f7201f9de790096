/**
 * The API of the peer: one question at a time, with a deadline, and one kind of failure.
 *
 * The session is in a cookie that no script can read. What this module keeps is the CSRF token, in memory only: every
 * method but GET sends it along.
 */

import { t } from "./words.js";

const DEADLINE_MS = 15000;
const RETRY_AFTER_S_MAX = 60;
const PATIENCE = 5;

let csrf = null;

/** An answer that is none: `status` 0 when nobody answered; `retryAfterS` null when the peer names no time. */
export class Failure extends Error {
  constructor(status, message, retryAfterS = null) {
    super(message);
    this.status = status;
    this.retryAfterS = retryAfterS;
  }

  /** What to tell a person, in their language where we have words for it. */
  get told() {
    if (this.status === 0) return t("fail_offline");
    const isNoRoute = this.status === 404 && /^(Unknown request URL|$)/.test(this.message);
    if (isNoRoute) return t("fail_missing");
    return this.message || t("fail_unknown", { status: this.status });
  }
}

/** The parsed answer to GET `path`, null when it is empty. Throws Failure. */
export function read(path, headers = {}) {
  return ask("GET", path, undefined, headers);
}

/** Changes something; once more when a login in another tab has replaced the session. Throws Failure. */
export async function change(method, path, body) {
  try {
    return await ask(method, path, body);
  } catch (failure) {
    const before = csrf;
    if (failure.status !== 403 || before === null) throw failure;
    await whoAmI().catch(() => null);
    if (csrf === before) throw failure;
    return ask(method, path, body);
  }
}

/** Like `change`, again while nobody coordinates the mesh. Only for what may be done twice. `waiting` is told so. */
export async function insist(method, path, body, waiting) {
  for (let tries = 1; ; tries++) {
    try {
      return await change(method, path, body);
    } catch (failure) {
      if (failure.status !== 503 || failure.retryAfterS === null || tries === PATIENCE) throw failure;
      waiting();
      await new Promise((resolve) => setTimeout(resolve, 1000 * failure.retryAfterS));
    }
  }
}

/** The user who is signed in; null when nobody is. Throws Failure when the peer cannot tell. */
export async function whoAmI() {
  try {
    const answer = await read("/api/auth/me");
    return signedIn(answer);
  } catch (failure) {
    if (failure.status === 401) return null;
    throw failure;
  }
}

/** Keeps the token of a login, and answers its user. */
export function signedIn(answer) {
  if (typeof answer?.csrf === "string") csrf = answer.csrf;
  return typeof answer?.user?.username === "string" ? answer.user : null;
}

/** Forgets the token. */
export function signedOut() {
  csrf = null;
}

async function ask(method, path, body, headers = {}) {
  const sent = { accept: "application/json", ...headers };
  if (body !== undefined) sent["content-type"] = "application/json";
  if (method !== "GET" && csrf !== null) sent["x-csrf-token"] = csrf;
  const content = body === undefined ? undefined : JSON.stringify(body);
  let answer, text;
  try {
    const signal = AbortSignal.timeout(DEADLINE_MS);
    answer = await fetch(path, { method, headers: sent, body: content, cache: "no-store", redirect: "error", signal });
    text = await answer.text();
  } catch {
    throw new Failure(0, "");
  }
  const parsed = json(text);
  if (!answer.ok) throw new Failure(answer.status, errorText(parsed), retryAfter(answer));
  if (text !== "" && parsed === undefined) throw new Failure(answer.status, "");
  return parsed ?? null;
}

function json(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function errorText(body) {
  const error = body?.error?.message ?? body?.error;
  return typeof error === "string" ? error.slice(0, 500) : "";
}

function retryAfter(answer) {
  const seconds = Number.parseFloat(answer.headers.get("retry-after") ?? "");
  return Number.isFinite(seconds) ? Math.min(Math.max(seconds, 1), RETRY_AFTER_S_MAX) : null;
}
