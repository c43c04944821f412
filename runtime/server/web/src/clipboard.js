// Copies text, also where the page comes over plain HTTP from another machine and the clipboard API is missing.

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = document.createElement("textarea");
    field.value = text;
    field.className = "offscreen";
    const focused = document.activeElement;
    document.body.append(field);
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    focused?.focus();
    return copied;
  }
}

/** Serves the copy buttons that markdown.js puts above code. */
export async function copyCode(event) {
  const button = event.target.closest?.("[data-copy]");
  if (!button) return;
  const code = button.closest(".code").querySelector("code").textContent;
  if (!(await copyText(code))) return;
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}
