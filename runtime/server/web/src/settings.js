// Sampling settings and appearance, kept in localStorage. An empty setting means: what the server does by default.

const STORED = "layerlift.settings";

/** One row a setting: the request field, its name, a hint, and the range the field accepts. */
export const FIELDS = [
  { name: "temperature", label: "Temperature", hint: "0 takes the most likely token", min: 0, max: 5, step: 0.05 },
  { name: "top_k", label: "Top-k", hint: "keep the k likeliest; 0 keeps all", min: 0, max: 1000, step: 1 },
  { name: "top_p", label: "Top-p", hint: "keep this share of probability", min: 0, max: 1, step: 0.01 },
  { name: "min_p", label: "Min-p", hint: "drop below this part of the best", min: 0, max: 1, step: 0.01 },
  { name: "max_tokens", label: "Max tokens", hint: "longest answer", min: 1, max: 1048576, step: 1 },
  { name: "seed", label: "Seed", hint: "same seed, same answer", min: 0, max: 4294967295, step: 1 },
  { name: "repeat_penalty", label: "Repeat penalty", hint: "1 is off", min: 0.1, max: 5, step: 0.05 },
  { name: "presence_penalty", label: "Presence penalty", hint: "0 is off", min: -2, max: 2, step: 0.1 },
  { name: "frequency_penalty", label: "Frequency penalty", hint: "0 is off", min: -2, max: 2, step: 0.1 },
];

/** A number in the field's range, or null for anything else. */
export function parsed(field, text) {
  const value = typeof text === "number" ? text : String(text ?? "").trim() === "" ? NaN : Number(text);
  if (!Number.isFinite(value) || value < field.min || value > field.max) return null;
  return field.step === 1 && !Number.isInteger(value) ? null : value;
}

export function loadSettings() {
  let stored = {};
  try {
    stored = JSON.parse(localStorage.getItem(STORED) ?? "{}") ?? {};
  } catch {
    // Damaged or forbidden storage: start from the defaults.
  }
  const settings = { theme: ["light", "dark"].includes(stored.theme) ? stored.theme : "auto", system: "" };
  if (typeof stored.system === "string") settings.system = stored.system;
  for (const field of FIELDS) settings[field.name] = parsed(field, stored[field.name]);
  return settings;
}

export function saveSettings(settings) {
  try {
    localStorage.setItem(STORED, JSON.stringify(settings));
  } catch {
    // The settings then last as long as the page.
  }
}

/** The request fields of the settings that are set. */
export function requestFields(settings) {
  return Object.fromEntries(FIELDS.map(({ name }) => [name, settings[name]]).filter(([, value]) => value !== null));
}

export function applyTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}
