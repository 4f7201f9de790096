/** What somebody sees who is signed in: notices, machines, totals, requests. It shows; it asks and changes nothing. */

import { at, list, make, phrase, say, show } from "./page.js";
import { countdown, duration, moment, number, stateWord, t } from "./words.js";

const MODELS_SHOWN = 8;
const MESSAGE_SHOWN = 200;
// What a state means at a glance; every other one is neither good nor bad.
const MOODS = {
  alive: "good", online: "good", success: "good",
  suspect: "bad", offline: "bad", dead: "bad", "wrong-version": "bad", error: "bad",
  draining: "warn", interrupted: "warn", cordoned: "warn",
};

/** Shows what the feeds hold. */
export function showHome({ mesh, agents, overview, requests }) {
  say("mesh-name", mesh.data?.name ?? "");
  showNotices(mesh.data);
  showMachines(mesh, agents);
  showTotals(overview);
  showRequests(requests);
}

/** Says under a heading that a feed loads, failed or is empty; true when there is something to show. */
export function isFilled(id, feed, isEmpty, emptyText) {
  const told = note(feed, isEmpty, emptyText);
  if (at(id).textContent !== told.replaceAll("`", "")) at(id).replaceChildren(...phrase(told));
  return feed.data !== null && !isEmpty;
}

/** True while the mesh has nobody who answers for it. */
export function isChoosing(feeds, mesh) {
  const isAskedToWait = feeds.some((feed) => feed.failure?.status === 503 && feed.failure.retryAfterS !== null);
  const coordinator = rows(mesh.data?.peers).find((peer) => peer.id === mesh.data.coordinator?.id);
  return isAskedToWait && !["alive", "draining"].includes(coordinator?.state);
}

/** The objects of an array, whatever was sent instead of it. */
export function rows(value) {
  return Array.isArray(value) ? value.filter((each) => each !== null && typeof each === "object") : [];
}

function note({ data, failure }, isEmpty, emptyText) {
  // Of a lost connection and an election the banner tells, which is written first.
  const isToldElsewhere = [0, 503].includes(failure?.status) && at("banner").textContent !== "";
  if (failure !== null && !isToldElsewhere) {
    return failure.status >= 500 ? t("retrying", { message: failure.told }) : failure.told;
  }
  if (data === null) return t("loading");
  return isEmpty ? emptyText : "";
}

function showNotices(mesh) {
  const notices = [];
  if (mesh?.door?.open) notices.push({ id: "door", text: t("door_open", { time: countdown(mesh.door.seconds_left) }) });
  for (const id of ["joins_waiting", "guests_waiting"]) {
    if (mesh?.[id] > 0) notices.push({ id, text: t(id, { count: number(mesh[id]) }) });
  }
  list(at("notices"), notices, (notice) => notice.id, (notice) => make("li", { class: "notice" }, ...phrase(notice.text)));
}

// -- machines

function showMachines(mesh, agents) {
  const machines = together(mesh.data, agents.data);
  const feed = mesh.data === null ? agents : mesh;
  isFilled("machines-note", feed, machines.length === 0, t("machines_none"));
  list(at("machines"), machines, (machine) => machine.id, card);
}

/** Peers and registered servers, once each: what the mesh and what the management API tells of them. */
function together(mesh, agents) {
  const served = new Map(rows(agents).map((agent) => [agent.id, agent]));
  const peers = rows(mesh?.peers);
  const known = new Set(peers.map((peer) => peer.id));
  const others = rows(agents).filter((agent) => !known.has(agent.id));
  return [...peers, ...others].map((each) => {
    const agent = served.get(each.id) ?? {};
    const loaded = texts(agent.loaded_models);
    const models = [...loaded, ...texts(each.models).filter((model) => !loaded.includes(model))];
    return {
      id: String(each.id),
      name: text(agent.custom_name) || text(each.name) || text(each.machine_name) || "–",
      state: each.is_cordoned ? "cordoned" : text(each.state) || text(each.status) || "unknown",
      badges: badges(each, mesh),
      gpus: rows(agent.gpu_devices).map((gpu) => (gpu.count > 1 ? `${gpu.count} × ${gpu.model}` : `${gpu.model}`)),
      models: models.slice(0, MODELS_SHOWN).map((name) => ({ name, isLoaded: loaded.includes(name) })),
      more: Math.max(0, models.length - MODELS_SHOWN),
      active: each.active_requests ?? null,
      queued: each.queued ?? null,
    };
  });
}

function badges(each, mesh) {
  const found = [];
  if (each.id === mesh?.self?.id) found.push("this_machine");
  if (each.id === mesh?.coordinator?.id) found.push("coordinator");
  if (each.is_guest) found.push("guest");
  if (each.is_external) found.push("server");
  return found;
}

function card(machine) {
  const models = machine.models.map(modelChip);
  if (machine.more > 0) models.push(make("li", { class: "more" }, t("models_more", { count: number(machine.more) })));
  if (models.length === 0) models.push(make("li", { class: "more" }, t("models_none")));
  return make(
    "li",
    { class: "card machine" },
    make("h3", {}, machine.name),
    make("p", { class: "badges" }, ...machine.badges.map((badge) => make("span", { class: "badge" }, t(badge)))),
    make("p", {}, state("state", machine.state)),
    make("p", {}, t("active", { active: number(machine.active), queued: number(machine.queued) })),
    machine.gpus.length > 0 && make("p", { class: "hint" }, machine.gpus.join(", ")),
    make("ul", { class: "plain models", "aria-label": t("models") }, ...models),
  );
}

function modelChip({ name, isLoaded }) {
  if (!isLoaded) return make("li", {}, name);
  return make("li", { class: "loaded" }, name, make("span", { class: "unseen" }, ` ${t("loaded")}`));
}

// -- totals

function showTotals(overview) {
  const stats = overview.data?.stats;
  const isShown = isFilled("totals-note", overview, false, "");
  const tiles = [
    ["total_requests", number(stats?.total_requests)],
    ["total_success", number(stats?.successful_requests)],
    ["total_failed", number(stats?.failed_requests)],
    ["total_running", number(stats?.running_requests)],
    ["total_tokens", number(stats?.total_tokens)],
    ["total_average", duration(stats?.average_response_time_ms)],
  ];
  list(at("totals"), isShown ? tiles : [], ([name]) => name, ([name, value]) =>
    make("div", { class: "card tile" }, make("dt", {}, t(name)), make("dd", {}, value)),
  );
}

// -- requests

function showRequests(requests) {
  const records = rows(requests.data?.records);
  const isShown = isFilled("requests-note", requests, records.length === 0, t("requests_none"));
  if (isShown && rows(requests.data.incomplete).length + texts(requests.data.incomplete).length > 0) {
    say("requests-note", t("requests_incomplete"));
  }
  show("requests", isShown);
  list(at("requests").tBodies[0], records.map(request), ({ id }) => id, requestRow);
}

function request(record) {
  const status = text(record.status?.type);
  const tokens = [record.prompt_tokens, record.completion_tokens].filter((count) => typeof count === "number");
  return {
    id: String(record.id),
    at: moment(record.timestamp),
    model: text(record.model),
    machine: text(record.agent_machine_name) || "–",
    state: text(record.state) || status,
    message: text(record.status?.message).slice(0, MESSAGE_SHOWN),
    duration: duration(record.duration_ms),
    tokens: tokens.length > 0 ? number(tokens.reduce((sum, count) => sum + count)) : "–",
  };
}

function requestRow(each) {
  const message = each.message && make("span", { class: "hint" }, each.message);
  return make(
    "tr",
    { role: "row" },
    cell("when", each.at, "time"),
    cell("model", each.model),
    cell("machine", each.machine),
    cell("state", make("span", {}, state("status", each.state), " ", message)),
    cell("duration", each.duration, "number"),
    cell("tokens", each.tokens, "number"),
  );
}

/** A cell of a table. On a narrow screen the row is a card, and `label` stands before the content. */
export function cell(label, content, kind = "") {
  return make("td", { role: "cell", class: kind, "data-label": t(label) }, content);
}

function state(prefix, name) {
  return make("span", { class: `state ${MOODS[name] ?? "neutral"}` }, stateWord(prefix, name));
}

function texts(value) {
  return Array.isArray(value) ? value.filter((each) => typeof each === "string") : [];
}

function text(value) {
  return typeof value === "string" ? value : "";
}
