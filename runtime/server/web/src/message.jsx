// One message: its text, its files, its alternatives, and what can be done with it.
import { Component } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { sizeOf } from "./attachment.js";
import { edit, regenerate, showBranch } from "./chats.js";
import { copyText } from "./clipboard.js";
import { splitThinking } from "./conversation.js";
import { Icon, IconButton } from "./icons.jsx";
import { Growing, Prose } from "./text.jsx";

const whole = new Intl.NumberFormat("en");
const one = new Intl.NumberFormat("en", { maximumFractionDigits: 1, minimumFractionDigits: 1 });

function figures({ tokens, perSecond, prompt, read, promptSeconds }) {
  const parts = [];
  if (tokens) parts.push(`${whole.format(tokens)} ${tokens === 1 ? "token" : "tokens"}`);
  if (perSecond) parts.push(`${one.format(perSecond)} tokens/s`);
  if (prompt) {
    const seen = read < prompt ? `, ${whole.format(read)} new` : "";
    const took = promptSeconds >= 0.05 ? `${seen && ","} in ${one.format(promptSeconds)} s` : "";
    parts.push(`prompt of ${whole.format(prompt)}${seen}${took}`);
  }
  return parts.join(" · ");
}

const Thinking = ({ text }) => (
  <details class="thinking">
    <summary>Thoughts</summary>
    <Prose text={text} />
  </details>
);

const Files = ({ files }) => (
  <ul class="chips" aria-label="Files">
    {files.map((file, index) => (
      <li key={index}>
        <details class="file">
          <summary>
            <Icon name="clip" /> {file.name} <small>{sizeOf(file)}</small>
          </summary>
          <pre tabIndex={0}>{file.text}</pre>
        </details>
      </li>
    ))}
  </ul>
);

const Reading = ({ done, total }) => (
  <div class="reading">
    <progress max={total} value={done} aria-label="Reading the prompt" />
    <span>
      Reading the prompt, {whole.format(done)} of {whole.format(total)} tokens
    </span>
  </div>
);

const Writing = ({ answer }) => (
  <Growing answer={answer}>
    {({ body, html, thinking, progress }) => (
      <>
        {thinking && (
          <details class="thinking">
            <summary>Thinking…</summary>
            <p class="plain">{thinking}</p>
          </details>
        )}
        {progress ? <Reading {...progress} /> : !html.length && <div class="dots" aria-hidden="true"><i /><i /><i /></div>}
        {body}
        <footer class="message-foot">
          <span class="figures">{figures(answer.stats) || "Waiting for the model"}</span>
        </footer>
      </>
    )}
  </Growing>
);

function Editor({ message, close }) {
  const field = useRef();
  const [text, setText] = useState(message.content);
  useEffect(() => {
    field.current.focus();
    field.current.setSelectionRange(text.length, text.length);
  }, []);
  const asks = message.role === "user";
  const save = () => {
    if (text.trim() || message.files?.length) edit(message.id, text);
    close();
  };
  const keys = (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      close();
    } else if (asks && event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      save();
    }
  };
  return (
    <div class="editor">
      <textarea ref={field} aria-label="Edit the message" value={text} rows={Math.min(12, text.split("\n").length + 1)}
        onInput={(event) => setText(event.currentTarget.value)} onKeyDown={keys} />
      <div class="buttons">
        <button type="button" class="quiet" onClick={close}>Cancel</button>
        <button type="button" class="primary" onClick={save}>{asks ? "Ask again" : "Save"}</button>
      </div>
    </div>
  );
}

const Branches = ({ branch, idle }) => (
  <span class="branches" role="group" aria-label="Alternatives">
    <IconButton icon="left" label="Previous alternative" disabled={!idle || !branch.previous}
      onClick={() => showBranch(branch.previous)} />
    <span>{branch.position} / {branch.count}</span>
    <IconButton icon="right" label="Next alternative" disabled={!idle || !branch.next}
      onClick={() => showBranch(branch.next)} />
  </span>
);

function Copy({ text }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    if (!(await copyText(text))) return;
    setDone(true);
    setTimeout(() => setDone(false), 1500);
  };
  return <IconButton icon={done ? "check" : "copy"} label={done ? "Copied" : "Copy the message"} onClick={copy} />;
}

const Note = ({ message }) => (
  <>
    {message.error && (
      <p class="trouble" role="alert">
        {message.error} <button type="button" class="quiet" onClick={() => regenerate(message.id)}>Try again</button>
      </p>
    )}
    {message.stopped && <p class="note">Stopped</p>}
    {message.role === "assistant" && !message.content && !message.thinking && !message.error && !message.stopped && (
      <p class="note">The answer is empty</p>
    )}
    {message.cut && <p class="note">Ended at the token limit</p>}
  </>
);

export class Message extends Component {
  state = { editing: false };

  shouldComponentUpdate(next, state) {
    const { branch, ...props } = this.props;
    return (
      state.editing !== this.state.editing ||
      Object.keys(props).some((name) => props[name] !== next[name]) ||
      Object.keys(branch).some((name) => branch[name] !== next.branch[name])
    );
  }

  render({ message, branch, writing, idle }, { editing }) {
    const user = message.role === "user";
    const { thinking, text } = user ? { text: message.content } : splitThinking(message.content);
    const thoughts = message.thinking || thinking;
    return (
      <article class={`message ${message.role}`} aria-label={user ? "You" : "Assistant"} data-id={message.id}>
        {message.files?.length > 0 && <Files files={message.files} />}
        {editing ? (
          <Editor message={message} close={() => this.setState({ editing: false })} />
        ) : writing ? (
          <Writing answer={writing} />
        ) : (
          <>
            {thoughts && <Thinking text={thoughts} />}
            {user ? message.content && <div class="bubble">{message.content}</div> : <Prose text={text} />}
            <Note message={message} />
            <footer class="message-foot">
              {branch.count > 1 && <Branches branch={branch} idle={idle} />}
              {!user && message.stats && <span class="figures">{figures(message.stats)}</span>}
              <span class="actions">
                <Copy text={text} />
                <IconButton icon="edit" label="Edit the message" disabled={!idle}
                  onClick={() => this.setState({ editing: true })} />
                {!user && <IconButton icon="again" label="Answer again" disabled={!idle} onClick={() => regenerate(message.id)} />}
              </span>
            </footer>
          </>
        )}
      </article>
    );
  }
}
