// SPDX-License-Identifier: MIT
// What each part of the page shows of /stats and /history (docs/api.md).

import { Chart } from "./chart.js";
import { byId, el, keyed, setAttribute, setText } from "./dom.js";
import { clock, count, DASH, ms, percent, rate, size, span, words } from "./format.js";
import { showBars, Table } from "./tables.js";
import { hostLevel, hostWord } from "./verdict.js";

export const SIGNS = { bad: "✕", warn: "!", info: "i", ok: "✓", idle: "–" };
const RANK = { bad: 3, warn: 2, ok: 1, idle: 0 };
const RANGES_S = { "15m": 900, "1h": 3600, "6h": 21_600 };
const OUTCOMES = { retry: { level: "warn", sign: "↻" }, dead: { level: "bad", sign: "✕" } };
const BODY_SHOWN = 2000;

// The findings

export function showVerdict(findings, onHost) {
  keyed(byId("verdict"), findings, (finding) => finding.kind,
    (finding) => el("li", {},
      el("span", { class: "sign", "aria-hidden": "true" }),
      el("div", {}, el("strong"), finding.who ? el("span", { class: "who" }) : null, el("p"), finding.hint ? el("code", { text: finding.hint }) : null,
        finding.host ? el("button", { type: "button", class: "quiet", onclick: () => onHost(finding.host) }, "Show its failures") : null)),
    (node, finding) => {
      setAttribute(node, "data-level", finding.level);
      setText(node.querySelector(".sign"), SIGNS[finding.level]);
      setText(node.querySelector("strong"), finding.title);
      if (finding.who) setText(node.querySelector(".who"), finding.who === "us" ? "our side" : "their side");
      setText(node.querySelector("p"), finding.text);
    });
}

// The tiles

function tilesOf({ now, queue, spool, totals, refused_last_minute }) {
  const refused = Object.entries(refused_last_minute).map(([code, number]) => `${count(number)} ${code}`).join(", ");
  const away = !queue.reachable;
  const ratio = now.success_ratio;
  const oldest = queue.oldest_ready_s;
  return [
    { name: "Accepted", value: rate(now.in_per_s), unit: "/s", note: refused ? `${refused} in the last minute` : `${count(totals.accepted)} since the start`, level: refused ? "bad" : null },
    { name: "Delivered", value: rate(now.out_per_s), unit: "/s", note: `${rate(now.attempts_per_s)}/s tried` },
    { name: "Success", value: percent(ratio), note: `${rate(now.retried_per_s)}/s retried, ${rate(now.dead_per_s)}/s dead`, level: ratio === null || ratio >= 0.99 ? null : ratio < 0.5 ? "bad" : "warn" },
    { name: "Answer time", value: ms(now.latency_ms.p50), note: `p90 ${ms(now.latency_ms.p90)}, p99 ${ms(now.latency_ms.p99)}` },
    { name: "Accepted to sent", value: ms(now.lag_ms.p50), note: `p99 ${ms(now.lag_ms.p99)}` },
    { name: "Ready", value: away ? DASH : count(queue.ready), note: away ? "Redis is away" : oldest === null ? "nothing waits" : `oldest ${span(oldest)}`, level: away ? "bad" : (oldest ?? 0) > 10 ? "warn" : null },
    { name: "Later", value: away ? DASH : count(queue.later), note: "retries, pauses, delays" },
    { name: "In flight", value: count(now.in_flight), note: `${percent(now.saturation)} of what workers may`, level: now.saturation >= 0.9 ? "warn" : null },
    { name: "Dead letters", value: away ? DASH : count(queue.dead), note: `${count(totals.dead)} died since the start`, level: now.dead_per_s > 0 ? "warn" : null },
    { name: "Spool", value: spool.bytes ? size(spool.bytes) : "empty", note: spool.bytes ? `${percent(spool.bytes / spool.max_bytes)} of ${size(spool.max_bytes)}` : `room for ${size(spool.max_bytes)}`, level: spool.bytes ? (spool.bytes > spool.max_bytes * 0.8 ? "bad" : "warn") : null },
  ];
}

export function showTiles(stats) {
  keyed(byId("tiles"), tilesOf(stats), (tile) => tile.name,
    (tile) => el("div", { class: "tile" }, el("dt", {}, el("span", { text: tile.name }), el("span", { class: "tile-sign" })), el("dd", { class: "tile-value" }, el("span"), el("small", { text: tile.unit ?? "" })), el("dd", { class: "tile-note" })),
    (node, tile) => {
      setAttribute(node, "data-level", tile.level ?? null);
      setText(node.querySelector(".tile-sign"), tile.level ? SIGNS[tile.level] : "");
      setText(node.querySelector(".tile-value span"), tile.value);
      setText(node.querySelector(".tile-note"), tile.note);
    });
}

// The charts

const field = (name) => (point) => point[name] ?? null;

export class Charts {
  constructor(parent) {
    const short = (value) => (value < 1000 ? ms(value) : `${value / 1000} s`);
    this.all = [
      new Chart({ title: "Volume", unit: "per second", empty: "No traffic in this time", format: rate, lines: [{ label: "accepted", value: field("in") }, { label: "delivered", value: field("out") }] }),
      new Chart({ title: "Failures", unit: "per second", empty: "No failure in this time", format: rate, lines: [{ label: "retried", value: field("retried") }, { label: "dead", value: field("dead") }] }),
      new Chart({ title: "Answer time", unit: "of targets", empty: "No answer in this time", format: ms, tick: short, lines: [{ label: "p50", value: field("p50") }, { label: "p99", value: field("p99") }] }),
      new Chart({ title: "Waiting", unit: "postbacks", empty: "Nothing waited in this time", format: count, least: 2, lines: [{ label: "ready", value: field("ready") }, { label: "later", value: field("later") }] }),
      new Chart({ title: "Oldest ready", unit: "age", empty: "Nothing waited in this time", format: span, lines: [{ label: "oldest", value: field("oldest_s") }] }),
      new Chart({ title: "Spool", unit: "on disk", empty: "The spool was empty", format: size, least: 1024, lines: [{ label: "spool", value: field("spool_bytes") }] }),
    ];
    for (const chart of this.all) {
      chart.onCursor = (time, own) => this.all.forEach((one) => one.point(time, own));
      parent.append(chart.node);
    }
  }

  show(history, range, nowMs) {
    const to = nowMs / 1000;
    for (const chart of this.all) chart.show(history.points, to - RANGES_S[range], to, history.step_s);
  }
}

// The tables

const facts = (pairs) => el("dl", { class: "facts" }, ...pairs.filter(([, value]) => value !== null && value !== undefined && value !== "").map(([name, value]) => el("div", { class: value instanceof Node || String(value).length > 32 ? "wide" : null }, el("dt", { text: name }), el("dd", {}, value))));
let options = ""; // -c and --set that the daemon was given: every command wants the same
export const startedWith = (text) => { options = text ? ` ${text}` : ""; };
const command = (text) => el("code", { class: "command", text: text + options });

export function hostTable(onFailures) {
  const mark = (host) => ({ text: hostWord(host), level: hostLevel(host), sign: SIGNS[hostLevel(host)] });
  return new Table(byId("hosts"), {
    keyOf: (host) => host.host,
    levelOf: hostLevel,
    sort: { name: "state", down: true },
    empty: "No host was tried yet.",
    columns: [
      { name: "host", label: "Host", text: true, isLong: true, cell: (host) => host.host, sort: (host) => host.host },
      { name: "state", label: "State", text: true, cell: mark, sort: (host) => RANK[hostLevel(host)] * 1e9 + host.attempts_per_s },
      { name: "rate", label: "Tries/s", cell: (host) => rate(host.attempts_per_s), sort: (host) => host.attempts_per_s },
      { name: "success", label: "Success", cell: (host) => ({ text: percent(host.success_ratio), level: host.success_ratio === null ? null : hostLevel({ ...host, breaker: "closed", paused_s: 0 }) }), sort: (host) => host.success_ratio ?? 2 },
      { name: "p50", label: "p50", cell: (host) => ms(host.p50_ms), sort: (host) => host.p50_ms ?? -1 },
      { name: "p99", label: "p99", cell: (host) => ms(host.p99_ms), sort: (host) => host.p99_ms ?? -1 },
      { name: "flight", label: "In flight", cell: (host) => `${count(host.in_flight)}${host.limit ? ` / ${count(host.limit)}` : ""}`, sort: (host) => host.in_flight },
      { name: "retried", label: "Retried", cell: (host) => count(host.retried), sort: (host) => host.retried },
      { name: "dead", label: "Dead", cell: (host) => count(host.dead), sort: (host) => host.dead },
    ],
    detail: (host) => [
      facts([
        ["Attempts", count(host.attempts)], ["Delivered", count(host.delivered)], ["Retried", count(host.retried)], ["Dead", count(host.dead)],
        ["Breaker", words(host.breaker)], ["Paused for", host.paused_s > 0 ? span(host.paused_s) : null],
        ["Fails since", host.failing_since_ms ? `${clock(host.failing_since_ms)} (${span((Date.now() - host.failing_since_ms) / 1000)})` : null],
      ]),
      host.host === "other"
        ? el("p", { class: "hint", text: "What hosts without a row of their own sum up to." })
        : el("p", { class: "hint" }, el("button", { type: "button", class: "quiet", onclick: () => onFailures(host.host) }, "Show its failures"), command(`postbackd tail --failed --host ${host.host}`), command(`postbackd dead list --host ${host.host}`)),
    ],
  });
}

const bodyOf = (line) => {
  if (line.response_body) return el("pre", { tabindex: "0", "aria-label": "Answer", text: line.response_body.slice(0, BODY_SHOWN) + (line.body_truncated || line.response_body.length > BODY_SHOWN ? " …" : "") });
  return line.response_body_b64 ? el("pre", { text: `base64: ${line.response_body_b64.slice(0, BODY_SHOWN)}` }) : null;
};

const answerOf = (line) => [line.response_code, words(line.error ?? line.reason ?? "")].filter(Boolean).join(" ");

export function failureTable() {
  return new Table(byId("failures"), {
    keyOf: (line) => `${line.id} ${line.attempt} ${line.time}`,
    empty: "No failure was seen.",
    columns: [
      { name: "time", label: "Time", text: true, cell: (line) => clock(Date.parse(line.time)) },
      { name: "outcome", label: "Outcome", text: true, cell: (line) => ({ text: line.outcome, ...OUTCOMES[line.outcome] }) },
      { name: "host", label: "Host", text: true, isLong: true, cell: (line) => line.host ?? DASH },
      { name: "answer", label: "Answer", text: true, cell: (line) => answerOf(line) || DASH },
      { name: "body", label: "Body", text: true, isLong: true, cell: (line) => (line.response_body || line.error_detail || DASH).slice(0, 200) },
      { name: "took", label: "Took", cell: (line) => ms(line.response_time_ms) },
      { name: "attempt", label: "Attempt", cell: (line) => count(line.attempt) },
    ],
    detail: (line) => [
      facts([
        ["Id", el("code", { text: line.id ?? DASH })], ["Request", el("code", { text: `${line.method ?? ""} ${line.url ?? line.host ?? ""}` })], ["Reason", line.reason && words(line.reason)],
        ["Error", line.error && words(line.error)], ["Detail", line.error_detail], ["Next attempt", line.next_attempt_at && clock(Date.parse(line.next_attempt_at))],
        ["Connected to", line.remote_ip], ["Worker", line.worker], ["Timings", line.remote_ip && Object.entries(line.timings_ms).map(([name, value]) => `${name} ${ms(value)}`).join(", ")],
        ["Answer", bodyOf(line)],
      ]),
      line.id ? el("p", { class: "hint" }, "Its whole story: ", command(`postbackd explain ${line.id}`)) : el("p", { class: "hint" }),
    ],
  });
}

export function workerTable() {
  const isDeliver = (worker) => worker.role === "deliver";
  return new Table(byId("workers"), {
    keyOf: (worker) => `${worker.role} ${worker.slot}`,
    empty: "No worker.",
    columns: [
      { name: "worker", label: "Worker", text: true, cell: (worker) => `${worker.role} ${worker.slot}` },
      { name: "state", label: "State", text: true, cell: (worker) => (worker.alive ? { text: "runs", level: "ok", sign: SIGNS.ok } : { text: "down", level: "bad", sign: SIGNS.bad }) },
      { name: "pid", label: "Pid", cell: (worker) => (worker.pid ? String(worker.pid) : DASH) },
      { name: "flight", label: "In flight", cell: (worker) => (isDeliver(worker) ? count(worker.in_flight) : DASH) },
      { name: "waiting", label: "Waiting", cell: (worker) => (isDeliver(worker) ? count(worker.waiting) : DASH) },
      { name: "beat", label: "Last beat", cell: (worker) => span(worker.heartbeat_age_s) },
      { name: "restarts", label: "Restarts", cell: (worker) => ({ text: count(worker.restarts), level: worker.restarts ? "warn" : null }) },
    ],
  });
}

export function clusterTable() {
  return new Table(byId("cluster"), {
    keyOf: (node) => `${node.node} ${node.at}`,
    empty: "None was heard of.",
    columns: [
      { name: "node", label: "Machine", text: true, cell: (node) => node.node },
      { name: "state", label: "State", text: true, cell: (node) => (node.isSum ? "" : node.ready ? { text: node.state, level: "ok", sign: SIGNS.ok } : { text: `${node.state}, not ready`, level: "bad", sign: SIGNS.bad }) },
      { name: "version", label: "Version", text: true, cell: (node) => node.version },
      { name: "in", label: "In/s", cell: (node) => rate(node.in_per_s) },
      { name: "out", label: "Out/s", cell: (node) => rate(node.out_per_s) },
      { name: "flight", label: "In flight", cell: (node) => count(node.in_flight) },
      { name: "spool", label: "Spool", cell: (node) => size(node.spool_bytes) },
      { name: "workers", label: "Workers", cell: (node) => count(node.workers) },
      { name: "seen", label: "Seen", cell: (node) => (node.isSum ? "" : `${span(node.seen_ms_ago / 1000)} ago`) },
    ],
  });
}

export function clusterRows(nodes) {
  const rows = nodes.map((node, at) => ({ ...node, at }));
  if (rows.length < 2) return rows;
  const sum = (name) => rows.reduce((total, row) => total + row[name], 0);
  return [...rows, { node: `all ${rows.length}`, at: "sum", isSum: true, version: "", in_per_s: sum("in_per_s"), out_per_s: sum("out_per_s"), in_flight: sum("in_flight"), spool_bytes: sum("spool_bytes"), workers: sum("workers") }];
}

// What was counted since the start

export function showCounts({ totals }) {
  const sorted = (counts) => Object.entries(counts).filter(([, value]) => value > 0).sort((a, b) => b[1] - a[1]);
  showBars(byId("dead"), sorted(totals.dead_by_reason), { empty: "None died.", label: words, format: count });
  showBars(byId("classes"), sorted(totals.attempts_by_class), { empty: "Nothing was tried yet.", label: words, format: count });
}

export function showTotals({ totals, log, queue }) {
  const codes = Object.entries(totals.requests_by_code).filter(([, value]) => value).map(([code, value]) => `${code}: ${count(value)}`).join(", ");
  const rows = [
    ["Requests", count(totals.requests)], ["by code", codes || DASH], ["Accepted", count(totals.accepted)], ["Spooled", count(totals.spooled)], ["Replayed", count(totals.replayed)],
    ["Attempts", count(totals.attempts)], ["Delivered", count(totals.delivered)], ["Retried", count(totals.retried)], ["Dead", count(totals.dead)], ["Parked", count(totals.parked)],
    ["Reclaimed", count(totals.reclaimed)], ["Redis errors", count(totals.redis_errors)], ["Log lines lost", count(log.lines_lost)],
    ["Redis memory", size(queue.used_memory_bytes)], ["Queue server", queue.server ?? DASH], ["Most that may wait", count(queue.max_depth)],
  ];
  keyed(byId("totals"), rows, ([name]) => name, ([name]) => el("div", {}, el("dt", { text: name }), el("dd")), (node, [, value]) => setText(node.lastElementChild, value));
}
