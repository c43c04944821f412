// The chat page: the messages of one conversation above the composer.
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { copyCode } from "./clipboard.js";
import { Composer, useFiles } from "./composer.jsx";
import { allAlternatives, path, splitThinking } from "./conversation.js";
import { Icon } from "./icons.jsx";
import { Message } from "./message.jsx";
import { useStore } from "./state.js";

const SUGGESTIONS = ["Explain how a rainbow forms", "Write a short poem about the sea", "Show a Python function that sorts words"];

function Welcome({ suggest }) {
  const { model, status } = useStore((state) => state.server);
  const lasting = useStore((state) => state.lasting);
  return (
    <div class="welcome">
      <h2>What is on your mind?</h2>
      <p>
        {status === "ready" && model ? <>You are talking to <b>{model}</b>. </> : null}
        {lasting ? "Conversations stay in this browser." : "This browser forbids storage: conversations end with the page."}
      </p>
      <div class="suggestions">
        {SUGGESTIONS.map((text) => <button type="button" key={text} onClick={() => suggest(text)}>{text}</button>)}
      </div>
    </div>
  );
}

function branchOf(ids, id) {
  const at = ids.indexOf(id);
  return { position: at + 1, count: ids.length, previous: ids[at - 1], next: ids[at + 1] };
}

/** Keeps the end in sight while text grows, until the reader scrolls up. */
function useFollowing(id) {
  const frame = useRef();
  const content = useRef();
  const state = useRef({ following: true, top: 0 });
  const [away, setAway] = useState(false);
  const toEnd = () => {
    if (!frame.current) return; // the page has just been left
    state.current.following = true;
    frame.current.scrollTop = frame.current.scrollHeight;
    setAway(false);
  };
  const scrolled = () => {
    const { scrollTop, scrollHeight, clientHeight } = frame.current;
    const left = scrollHeight - scrollTop - clientHeight;
    if (left < 24) state.current.following = true;
    else if (scrollTop < state.current.top - 1) state.current.following = false;
    state.current.top = scrollTop;
    setAway(!state.current.following && left > 200);
  };
  useEffect(toEnd, [id]);
  useEffect(() => {
    const observer = new ResizeObserver(() => state.current.following && toEnd());
    observer.observe(content.current);
    observer.observe(frame.current);
    return () => observer.disconnect();
  }, []);
  return { frame, content, scrolled, toEnd, away };
}

/** What a screen reader is told: that an answer has begun, and the answer when it is whole. */
function Announcer({ running, last }) {
  const was = useRef(false);
  const [text, setText] = useState("");
  useEffect(() => {
    if (running) setText("The model is answering");
    else if (was.current && last?.role === "assistant")
      setText(last.error ? "" : `${last.stopped ? "Stopped. " : ""}Answer: ${splitThinking(last.content).text.slice(0, 2000)}`);
    was.current = Boolean(running);
  }, [running]);
  return <div class="offscreen" role="status">{text}</div>;
}

export function Chat() {
  const conversation = useStore((state) => state.conversation);
  const running = useStore((state) => state.running[state.conversation?.id]);
  const [draft, setDraft] = useState(null);
  const [dragging, setDragging] = useState(false);
  const attached = useFiles();
  const shown = useMemo(() => (conversation ? path(conversation) : []), [conversation]);
  const families = useMemo(() => (conversation ? allAlternatives(conversation) : {}), [conversation]);
  const { frame, content, scrolled, toEnd, away } = useFollowing(conversation?.id);
  // A question just sent is brought into sight, wherever the reader was.
  useEffect(() => {
    if (running) toEnd();
  }, [running]);

  const over = (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    setDragging(true);
  };
  const drop = (event) => {
    event.preventDefault();
    setDragging(false);
    attached.add([...event.dataTransfer.files]);
  };
  const leave = (event) => event.currentTarget.contains(event.relatedTarget) || setDragging(false);
  return (
    <main class={`chat ${shown.length ? "" : "empty"}`} onDragOver={over} onDrop={drop} onDragLeave={leave} onClick={copyCode}>
      <div class="scroll" ref={frame} onScroll={scrolled} tabIndex={shown.length ? 0 : undefined} role="log"
        aria-live="off" aria-label="Messages">
        <div class="column" ref={content}>
          {!shown.length && <Welcome suggest={(text) => setDraft({ text })} />}
          {shown.map((message) => (
            <Message key={message.id} message={message} branch={branchOf(families[message.id], message.id)}
              writing={running?.id === message.id ? running : undefined} idle={!running} />
          ))}
        </div>
      </div>
      <Announcer running={running} last={shown.at(-1)} />
      <div class="column dock">
        {away && <button type="button" class="to-end" onClick={toEnd}><Icon name="down" /> Latest</button>}
        <Composer attached={attached} draft={draft} />
      </div>
      {dragging && <div class="drop" aria-hidden="true"><p>Drop text files to add them to the message</p></div>}
    </main>
  );
}
