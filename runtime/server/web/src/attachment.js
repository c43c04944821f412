// Text files put into a message.

const LARGEST = 1 << 20; // bytes

/** {name, text} of a text file, or an Error that says why it is none. */
export async function readText(file) {
  if (file.size > LARGEST) throw new Error(`${file.name}: ${Math.ceil(file.size / 1024)} KiB; at most 1024 can be added`);
  const bytes = await file.arrayBuffer();
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new Error(`${file.name}: not a text file (no valid UTF-8)`);
  }
  if (text.includes("\0")) throw new Error(`${file.name}: not a text file`);
  return { name: file.name, text };
}

export const sizeOf = ({ text }) => (text.length < 1024 ? `${text.length} B` : `${Math.round(text.length / 1024)} kB`);
