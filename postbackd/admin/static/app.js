// SPDX-License-Identifier: MIT
// The page: asks /stats and /history, hands the answers to the panels, keeps what the reader chose.

import { byId, setAttribute, setText } from "./dom.js";
import { clock, count, span } from "./format.js";
import { Charts, clusterRows, clusterTable, failureTable, hostTable, showCounts, showTiles, showTotals, showVerdict, SIGNS, startedWith, workerTable } from "./panels.js";
import { judge, Memory } from "./verdict.js";

const STATS_EVERY_MS = 2000;
const HISTORY_EVERY_MS = { "15m": 4000, "1h": 10_000, "6h": 30_000 };
const TIMEOUT_MS = 8000;
const STALE_MS = 7000;
const FEW = 10; // failures shown at first

const charts = new Charts(byId("charts"));
const memory = new Memory();
const view = { range: "15m", stats: null, history: { step_s: 2, points: [] }, answeredMs: 0, failedSinceMs: null, host: null, filter: "", isLong: false, spoken: "" };

const hosts = hostTable(showFailuresOf);
const failures = failureTable();
const workers = workerTable();
const cluster = clusterTable();

// Asking

class TokenNeeded extends Error {}

const storage = (kind) => {
  try {
    return window[kind];
  } catch {
    return null; // switched off: then the choice lasts as long as the page
  }
};
let token = storage("sessionStorage")?.getItem("token") ?? "";

async function ask(path) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { headers, cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
  if (answer.status === 401 || answer.status === 403) throw new TokenNeeded();
  if (!answer.ok) throw new Error(`${path} answered ${answer.status}`);
  return answer.json();
}

async function askStats() {
  try {
    view.stats = await ask("/stats");
    view.answeredMs = Date.now();
    view.failedSinceMs = null;
    closeTokenDialog();
  } catch (error) {
    if (error instanceof TokenNeeded) return openTokenDialog();
    view.failedSinceMs ??= Date.now();
  }
  show();
}

async function askHistory() {
  const range = view.range;
  try {
    const history = await ask(`/history?range=${range}`);
    if (range !== view.range) return;
    view.history = history;
  } catch {
    return; // /stats, asked more often, tells what is wrong
  }
  charts.show(view.history, view.range, view.stats?.now_ms ?? Date.now());
}

function every(work, pauseMs) {
  let timer = 0;
  const turn = async () => {
    clearTimeout(timer);
    if (!document.hidden && !byId("token-dialog").open) await work();
    timer = setTimeout(turn, pauseMs());
  };
  document.addEventListener("visibilitychange", () => document.hidden || turn());
  turn();
  return turn;
}

// Showing

function show() {
  const isAway = view.failedSinceMs !== null;
  document.body.dataset.state = isAway ? "away" : "live";
  const findings = isAway ? [awayFinding()] : judge(view.stats, view.history.points, memory);
  showVerdict(findings, showFailuresOf);
  speak(findings);
  showState(isAway);
  showAge();
  if (view.stats) showStats(view.stats);
}

function awayFinding() {
  const last = view.answeredMs ? ` The figures below are those of ${clock(view.answeredMs)}.` : "";
  return {
    kind: "unreachable", level: "bad", who: "us", title: "The daemon does not answer",
    text: `No answer from its admin app since ${clock(view.failedSinceMs)}. Either it has stopped or this page cannot reach it.${last} Tried again every few seconds.`,
    hint: `postbackd status ${view.stats?.options ?? ""}`.trim(),
  };
}

function showState(isAway) {
  const stats = view.stats;
  const [level, text] = isAway ? ["bad", "no answer"] : stats.ready ? ["ok", "ready"] : stats.state === "running" ? ["bad", "not ready"] : ["info", stats.state];
  setAttribute(byId("state"), "data-level", level);
  setText(byId("state").firstElementChild, SIGNS[level]);
  setText(byId("state-text"), text);
  setText(byId("node"), stats?.node ?? "");
  document.title = `${level === "ok" ? "" : `${SIGNS[level]} ${text} · `}postbackd${stats ? ` · ${stats.node}` : ""}`;
}

function showStats(stats) {
  startedWith(stats.options);
  showTiles(stats);
  showHosts();
  showFailures();
  workers.show(stats.workers);
  setText(byId("workers-note"), `${stats.workers.filter((worker) => worker.alive).length} of ${stats.workers.length} run`);
  cluster.show(clusterRows(stats.cluster));
  showCounts(stats);
  showTotals(stats);
  setText(byId("totals-note"), `${clock(stats.started_ms)}, ${span(stats.uptime_s)} ago`);
  setText(byId("foot"), `postbackd ${stats.version} on ${stats.node}. Delivery log: ${stats.log.path}`);
}

function showHosts() {
  const wanted = view.filter.trim().toLowerCase();
  const all = view.stats.hosts.filter((host) => host.host !== "other" || host.attempts);
  const shown = all.filter((host) => host.host.toLowerCase().includes(wanted));
  hosts.show(shown, wanted ? `No host's name contains “${view.filter}”.` : "No host was tried yet.");
  setText(byId("hosts-note"), shown.length === all.length ? count(all.length) : `${count(shown.length)} of ${count(all.length)}`);
}

function showFailures() {
  const all = view.stats.failures;
  const shown = view.host ? all.filter((line) => line.host === view.host) : all;
  failures.show(view.isLong ? shown : shown.slice(0, FEW), view.host ? `None of the last ${all.length} failures is of ${view.host}.` : "No failure was seen.");
  setText(byId("failures-note"), view.host ? `of ${view.host}, among the last ${all.length}` : all.length ? `the last ${all.length}, newest first` : "");
  byId("all-hosts").hidden = !view.host;
  const more = byId("more-failures");
  more.hidden = shown.length <= FEW;
  setAttribute(more, "aria-expanded", String(view.isLong));
  setText(more, view.isLong ? `Show only ${FEW}` : `Show all ${shown.length}`);
}

function showFailuresOf(host) {
  view.host = host;
  showFailures();
  const title = byId("failures-title");
  title.setAttribute("tabindex", "-1");
  title.scrollIntoView({ block: "start" });
  title.focus({ preventScroll: true });
}

// Said when something else is the matter, not each time a figure moves.
function speak(findings) {
  const kinds = findings.map((finding) => finding.kind).join();
  if (kinds === view.spoken) return;
  view.spoken = kinds;
  setText(byId("announce"), findings.map((finding) => finding.title).join(". "));
}

function showAge() {
  const ageMs = Date.now() - view.answeredMs;
  const isLate = view.answeredMs && (ageMs > STALE_MS || view.failedSinceMs !== null);
  setText(byId("fresh"), !view.answeredMs ? "" : isLate ? `figures are ${span(Math.floor(ageMs / 1000))} old` : "live");
  setAttribute(byId("fresh"), "data-level", isLate ? "warn" : null);
}

// The token

function openTokenDialog() {
  const dialog = byId("token-dialog");
  if (dialog.open) return;
  const error = byId("token-error");
  error.hidden = !token;
  setText(error, token ? "The daemon does not know this token." : "");
  token = "";
  dialog.showModal();
}

function closeTokenDialog() {
  storage("sessionStorage")?.setItem("token", token);
  byId("token").value = "";
}

byId("token-form").addEventListener("submit", () => {
  token = byId("token").value.trim();
  // The dialog closes by itself; a wrong token brings it back.
  queueMicrotask(refresh);
});
byId("token-dialog").addEventListener("cancel", (event) => event.preventDefault());

// What the reader chooses

byId("ranges").addEventListener("change", (event) => {
  view.range = event.target.value;
  turnHistory();
});
byId("host-filter").addEventListener("input", (event) => {
  view.filter = event.target.value;
  if (view.stats) showHosts();
});
byId("more-failures").addEventListener("click", () => {
  view.isLong = !view.isLong;
  showFailures();
});
byId("all-hosts").addEventListener("click", () => {
  view.host = null;
  showFailures();
  byId("failures-title").focus();
});

const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");

function applyTheme(theme) {
  const isDark = theme ? theme === "dark" : prefersDark.matches;
  document.documentElement.dataset.theme = isDark ? "dark" : "light";
  setAttribute(byId("theme"), "aria-pressed", String(isDark));
}

byId("theme").addEventListener("click", () => {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  storage("localStorage")?.setItem("theme", theme);
  applyTheme(theme);
});
prefersDark.addEventListener("change", () => applyTheme(storage("localStorage")?.getItem("theme")));
applyTheme(storage("localStorage")?.getItem("theme"));

const turnStats = every(askStats, () => STATS_EVERY_MS);
const turnHistory = every(askHistory, () => HISTORY_EVERY_MS[view.range]);
setInterval(showAge, 1000);

function refresh() {
  turnStats();
  turnHistory();
}
