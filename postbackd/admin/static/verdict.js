// SPDX-License-Identifier: MIT
// Is it us or them, which host, since when: an answer of /stats made into sentences. Pure.

import { clock, count, ms, percent, rate, size, span, words } from "./format.js";

const FEW_FAILURES = 0.99; // of a host's attempts succeed: below it is worth a look
const MANY_FAILURES = 0.5;
const OLD_S = 10; // the oldest ready postback: above it more comes in than goes out
const FULL = 0.9; // of the transfers that may be in flight
const OURS = ["dns_error", "network_unreachable", "network_error"]; // where every host has it, look at this machine

export const LEVELS = ["bad", "warn", "info", "ok"];

export function hostLevel(host) {
  const ratio = host.success_ratio;
  if (host.breaker === "open" || (ratio !== null && ratio < MANY_FAILURES)) return "bad";
  if (host.breaker === "half_open" || host.paused_s > 0 || (ratio !== null && ratio < FEW_FAILURES)) return "warn";
  return ratio === null && !host.in_flight ? "idle" : "ok";
}

export function hostWord(host) {
  if (host.breaker === "open") return "breaker open";
  if (host.breaker === "half_open") return "probing";
  if (host.paused_s > 0) return "paused";
  return { bad: "failing", warn: "some fail", idle: "quiet", ok: "well" }[hostLevel(host)];
}

const since = (atMs, nowMs, word = "Since") => (atMs ? ` ${word} ${clock(atMs, false)} (${span((nowMs - atMs) / 1000)}).` : "");

function aboutQueue(stats, memory) {
  const { queue, spool } = stats;
  if (queue.reachable && !queue.shards_away) return [];
  if (queue.reachable) {
    const many = queue.shards_away > 1;
    return [{
      kind: "shards-away", level: "bad", who: "us", title: `${count(queue.shards_away)} ${many ? "shards are" : "shard is"} away`,
      text: `What lies there waits until ${many ? "they are" : "it is"} back; requests go to the others.`
        + `${since(memory.since("shards-away", stats.now_ms), stats.now_ms, "Seen since")} ${queue.error ?? ""}`,
    }];
  }
  if (spool.disk_full || spool.bytes >= spool.max_bytes) {
    return [{
      kind: "redis-away", level: "bad", who: "us", title: "Redis is away and nothing can be spooled",
      text: `Requests are refused with 503 spool_full: ${spool.disk_full ? "the disk of data_dir is full" : "the spool is full"}.`
        + `${since(memory.since("redis-away", stats.now_ms), stats.now_ms, "Seen since")} ${queue.error ?? ""}`,
    }];
  }
  const kept = spool.bytes ? `${size(spool.bytes)} of ${size(spool.max_bytes)} in the spool` : "nothing spooled yet";
  return [{
    kind: "redis-away", level: "bad", who: "us", title: "Redis is away",
    text: `Requests are still acknowledged and kept on disk (${kept}); nothing more is delivered until it is back.`
      + `${since(memory.since("redis-away", stats.now_ms), stats.now_ms, "Seen since")} ${queue.error ?? ""}`,
  }];
}

function aboutSpool(stats) {
  const { spool, queue } = stats;
  if (!spool.bytes || !queue.reachable) return [];
  return [{
    kind: "spool", level: "info", who: "us", title: "The spool is being replayed",
    text: `${size(spool.bytes)} in ${count(spool.files)} ${spool.files === 1 ? "file" : "files"} go back to Redis in their order.`,
  }];
}

function aboutReasons(stats) {
  const told = stats.queue.reachable ? stats.reasons : stats.reasons.filter((reason) => !reason.startsWith("queue"));
  return told.map((reason) => {
    const passing = /^(starting|draining)/.test(reason);
    return { kind: `reason ${reason.split(":")[0]}`, level: passing ? "info" : "bad", who: "us", title: passing ? words(stats.state).replace(/^./, (c) => c.toUpperCase()) : "Not ready", text: `${reason}.` };
  });
}

function aboutReload(stats) {
  if (!stats.reload_refused) return [];
  return [{ kind: "reload-refused", level: "warn", who: "us", title: "The last reload was refused", text: `The configuration before it goes on: ${stats.reload_refused}` }];
}

function aboutWorkers(stats) {
  const down = stats.workers.filter((worker) => !worker.alive);
  if (!down.length || stats.state !== "running") return [];
  const names = down.map((worker) => `${worker.role} ${worker.slot}`).join(", ");
  return [{ kind: "workers-down", level: "warn", who: "us", title: `${down.length} of ${stats.workers.length} workers down`, text: `${names}: replaced by the supervisor, with back-off.` }];
}

function aboutLoad(stats, points) {
  const { queue, now } = stats;
  if (!queue.reachable || (queue.oldest_ready_s ?? 0) <= OLD_S) return [];
  const full = now.saturation >= FULL ? ` Workers are ${percent(now.saturation)} busy.` : "";
  let begun = null;
  for (let at = points.length - 1; at >= 0 && (points[at].oldest_s ?? 0) > OLD_S; at -= 1) begun = points[at].t * 1000;
  return [{
    kind: "overload", level: "warn", who: "us", title: now.attempts_per_s ? "More comes in than goes out" : "Postbacks wait and none is tried",
    text: `${count(queue.ready)} are ready and wait, the oldest for ${span(queue.oldest_ready_s)}. In ${rate(now.in_per_s)}/s, out ${rate(now.out_per_s)}/s.${full}${since(begun, stats.now_ms)}`,
  }];
}

function lastAnswer(stats, name) {
  const line = stats.failures.find((failure) => name === null || failure.host === name);
  if (!line) return "";
  const what = line.response_code ? `HTTP ${line.response_code}` : words(line.error ?? line.reason ?? "failed");
  const body = (line.response_body ?? "").trim().slice(0, 80);
  return ` Last answer: ${what}${body ? ` “${body}”` : ""}${line.response_time_ms ? ` after ${ms(line.response_time_ms)}` : ""}.`;
}

function aboutHosts(stats, memory) {
  const tried = stats.hosts.filter((host) => host.success_ratio !== null || host.breaker !== "closed");
  const failing = tried.filter((host) => hostLevel(host) === "bad");
  const shaky = tried.filter((host) => hostLevel(host) === "warn");
  const causes = new Set(stats.failures.slice(0, 20).map((line) => line.error));
  if (failing.length > 2 && failing.length === tried.length && causes.size === 1 && OURS.includes([...causes][0])) {
    return [{ kind: "network", level: "bad", who: "us", title: `Every host fails alike: ${words([...causes][0])}`, text: "That looks like this machine's network or name server, not like the partners." }];
  }
  const found = failing.slice(0, 3).map((host) => ({
    kind: `host ${host.host}`, level: "bad", who: "them", host: host.host, title: `${host.host} ${host.breaker === "open" ? "is shut off" : "fails"}`,
    text: `${host.success_ratio === null ? "No attempt just now" : `${percent(host.success_ratio)} of ${rate(host.attempts_per_s)} tries/s succeed`}`
      + `${host.breaker === "open" ? `; its breaker is open, next try in ${span(host.paused_s)}` : ""}.`
      + `${since(host.failing_since_ms, stats.now_ms)}${lastAnswer(stats, host.host)}`,
  }));
  if (failing.length > 3) found.push({ kind: "more-hosts", level: "bad", who: "them", title: `${failing.length - 3} more hosts fail`, text: "They are at the top of the hosts below." });
  if (shaky.length) {
    const names = shaky.slice(0, 3).map((host) => `${host.host} (${host.success_ratio === null ? hostWord(host) : percent(host.success_ratio)})`).join(", ");
    found.push({ kind: "shaky", level: "warn", who: "them", title: shaky.length === 1 ? "1 host is not quite well" : `${shaky.length} hosts are not quite well`, text: `${names}${shaky.length > 3 ? " and others" : ""}.` });
  }
  const well = tried.length - failing.length - shaky.length;
  if (found.length && well) found.push({ kind: "rest", level: "ok", who: null, title: `${count(well)} other ${well === 1 ? "host is" : "hosts are"} well`, text: "A host that fails holds up no other." });
  return found;
}

// What there is to say, the worst first. `memory.since(kind, nowMs)` tells since when this page has seen it.
export function judge(stats, points, memory) {
  const found = [
    ...aboutQueue(stats, memory), ...aboutReasons(stats), ...aboutReload(stats), ...aboutWorkers(stats), ...aboutSpool(stats),
    ...aboutLoad(stats, points), ...aboutHosts(stats, memory),
  ].sort((a, b) => LEVELS.indexOf(a.level) - LEVELS.indexOf(b.level));
  memory.forgetAllBut(found.map((finding) => finding.kind));
  if (found.length) return found;
  if (!stats.totals.attempts && !stats.totals.accepted) {
    return [{ kind: "empty", level: "info", who: null, title: "Nothing was posted yet", text: "As soon as a request comes in, it shows here.", hint: "postbackd send request.json" }];
  }
  if (!stats.now.attempts_per_s && !stats.queue.ready) {
    return [{ kind: "quiet", level: "ok", who: null, title: "Quiet", text: `Nothing to deliver just now.${stats.queue.later ? ` ${count(stats.queue.later)} wait for their time.` : ""}` }];
  }
  return [{ kind: "well", level: "ok", who: null, title: "All is well", text: `${percent(stats.now.success_ratio)} of attempts succeed, nothing waits longer than ${span(Math.max(1, Math.ceil(stats.queue.oldest_ready_s ?? 0)))}.` }];
}

// Since when this page has seen a thing: where the daemon does not tell, at least since the page looks.
export class Memory {
  #first = new Map();

  since(kind, nowMs) {
    if (!this.#first.has(kind)) this.#first.set(kind, nowMs);
    return this.#first.get(kind);
  }

  forgetAllBut(kinds) {
    for (const kind of this.#first.keys()) if (!kinds.includes(kind)) this.#first.delete(kind);
  }
}
