// SPDX-License-Identifier: MIT
// Figures as a person reads them. Pure. What is not known is a dash.

export const DASH = "–";
const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat("en-US", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

export const count = (value) => (known(value) ? whole.format(value) : DASH);

export function rate(value) {
  if (!known(value)) return DASH;
  return Math.abs(value) < 100 && value !== 0 ? tenth.format(value) : whole.format(value);
}

export function ms(value) {
  if (!known(value)) return DASH;
  if (value >= 10_000) return `${tenth.format(value / 1000)} s`;
  return `${value < 10 ? tenth.format(value) : whole.format(value)} ms`;
}

// Never rounded up to 100 while something failed.
export function percent(ratio) {
  if (!known(ratio)) return DASH;
  const shown = (ratio * 100).toFixed(1);
  if (shown === "100.0") return ratio < 1 ? "99.9 %" : "100 %";
  return `${shown} %`;
}

export function size(value) {
  if (!known(value)) return DASH;
  let left = value;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (Math.abs(left) < 1024) return `${unit === "B" || left >= 100 ? whole.format(left) : tenth.format(left)} ${unit}`;
    left /= 1024;
  }
  return `${tenth.format(left)} TiB`;
}

export function span(seconds) {
  if (!known(seconds)) return DASH;
  if (seconds < 10) return `${tenth.format(Math.max(0, seconds))} s`;
  const s = Math.floor(seconds);
  if (s < 60) return `${s} s`;
  if (s < 600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}

const two = (number) => String(number).padStart(2, "0");

// In the time zone of whoever looks; the date where it is not today.
export function clock(unixMs, withSeconds = true) {
  if (!known(unixMs)) return DASH;
  const at = new Date(unixMs);
  const time = `${two(at.getHours())}:${two(at.getMinutes())}${withSeconds ? `:${two(at.getSeconds())}` : ""}`;
  const isToday = at.toDateString() === new Date().toDateString();
  return isToday ? time : `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${time}`;
}

export const words = (name) => String(name).replaceAll("_", " ");
