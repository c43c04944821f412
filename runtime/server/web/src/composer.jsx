// Where messages are written: text, files, send and stop.
import { useEffect, useRef, useState } from "preact/hooks";
import { readText, sizeOf } from "./attachment.js";
import { send, stop } from "./chats.js";
import { Icon, IconButton } from "./icons.jsx";
import { notify, useStore } from "./state.js";

/** [files, add(FileList), remove(index), clear()] of the message being written. */
export function useFiles() {
  const [files, setFiles] = useState([]);
  const add = async (list) => {
    for (const file of list) {
      try {
        const read = await readText(file);
        setFiles((before) => [...before, read]);
      } catch (error) {
        notify(error.message, { kind: "error" });
      }
    }
  };
  return { files, add, remove: (index) => setFiles(files.filter((_, at) => at !== index)), clear: () => setFiles([]) };
}

const touch = matchMedia("(hover: none) and (pointer: coarse)");

function fit(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

const Attached = ({ files, remove }) => (
  <ul class="chips" aria-label="Files to send">
    {files.map((file, index) => (
      <li key={index} class="chip">
        <Icon name="clip" /> {file.name} <small>{sizeOf(file)}</small>
        <IconButton icon="close" label={`Remove ${file.name}`} onClick={() => remove(index)} />
      </li>
    ))}
  </ul>
);

export function Composer({ attached, draft }) {
  const field = useRef();
  const picker = useRef();
  const [text, setText] = useState("");
  const id = useStore((state) => state.conversation?.id);
  const running = useStore((state) => Boolean(state.running[state.conversation?.id]));
  const { files, add, remove, clear } = attached;
  useEffect(() => field.current.focus({ preventScroll: true }), [id]);
  useEffect(() => {
    if (draft) setText(draft.text);
    field.current.focus();
  }, [draft]);
  useEffect(() => fit(field.current), [text]);

  const ready = !running && (text.trim() || files.length > 0);
  const submit = (event) => {
    event.preventDefault();
    if (!ready) return;
    send({ content: text.trim(), files });
    setText("");
    clear();
    field.current.focus();
  };
  // A keyboard on the screen has no Shift+Enter: there Enter starts a line, and the button sends.
  const keys = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !touch.matches) submit(event);
  };
  const paste = (event) => {
    if (!event.clipboardData.files.length) return;
    event.preventDefault();
    add(event.clipboardData.files);
  };
  return (
    <form class="composer" onSubmit={submit}>
      {files.length > 0 && <Attached files={files} remove={remove} />}
      <textarea ref={field} rows={1} aria-label="Message" placeholder="Ask something" value={text} enterkeyhint={touch.matches ? "enter" : "send"}
        onInput={(event) => setText(event.currentTarget.value)} onKeyDown={keys} onPaste={paste} />
      <div class="composer-row">
        <input ref={picker} type="file" multiple hidden aria-label="Files" onChange={(event) => {
          add([...event.currentTarget.files]);
          event.currentTarget.value = "";
        }} />
        <IconButton icon="clip" label="Add text files" onClick={() => picker.current.click()} />
        <span class="hint">Enter sends, Shift+Enter starts a line{running ? ", Esc stops" : ""}</span>
        {running ? (
          <button type="button" class="round" aria-label="Stop" title="Stop (Esc)" onClick={() => {
            stop();
            field.current.focus();
          }}><Icon name="stop" /></button>
        ) : (
          <button class="round" aria-label="Send" title="Send (Enter)" disabled={!ready}><Icon name="send" /></button>
        )}
      </div>
    </form>
  );
}
