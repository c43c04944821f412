// The completion page: a text, how the model goes on, and how likely each of its tokens was.
import { Component } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { Icon } from "./icons.jsx";
import { percent, quoted, surprise } from "./tokens.js";
import { adopt, branch, listen, setPrompt, stopWriting, write, writer } from "./writer.js";

const RUN = 64; // tokens drawn as one piece, so that a long text is not drawn again for each new token

class Run extends Component {
  shouldComponentUpdate(next) {
    const { tokens, start, selected } = this.props;
    const inside = (at) => at >= start && at < start + RUN;
    return (
      next.tokens.length !== tokens.length || next.tokens[0] !== tokens[0] || next.tokens.at(-1) !== tokens.at(-1) ||
      (next.selected !== selected && (inside(next.selected) || inside(selected)))
    );
  }

  render({ tokens, start, selected }) {
    return tokens.map(({ text, chance }, index) => (
      <span key={index} class={`token s${surprise(chance)}`} role="option" data-at={start + index}
        aria-selected={start + index === selected} tabIndex={start + index === Math.max(selected, 0) ? 0 : -1}
        aria-label={`${quoted(text)} ${percent(chance)}`}>{text}</span>
    ));
  }
}

const runsOf = (tokens) =>
  Array.from({ length: Math.ceil(tokens.length / RUN) }, (_, index) => tokens.slice(index * RUN, (index + 1) * RUN));

function Details({ token, at, busy }) {
  if (!token) return <p class="note">Choose a word to see what else could have stood there. Arrow keys move.</p>;
  return (
    <>
      <p>Token {at + 1}: <b class="mono">{quoted(token.text)}</b> {percent(token.chance)}</p>
      {token.others.length ? (
        <table class="likely">
          <caption class="offscreen">Likeliest tokens at this place</caption>
          <thead class="offscreen"><tr><th scope="col">Token</th><th scope="col">Probability</th><th scope="col">Share</th></tr></thead>
          <tbody>
            {token.others.map((other) => (
              <tr key={other.text}>
                <td>
                  <button type="button" class="quiet mono" disabled={busy || other.text === token.text}
                    title="Write on from this token" onClick={() => branch(at, other)}>{quoted(other.text)}</button>
                </td>
                <td>{percent(other.chance)}</td>
                <td><meter min={0} max={1} value={other.chance} aria-label={percent(other.chance)} /></td>
              </tr>
            ))}
          </tbody>
        </table>
      ) : <p class="note">The server sent no probabilities for this token.</p>}
    </>
  );
}

/** The writer's state, drawn at most once a frame. */
function useWriter() {
  const [, redraw] = useState(0);
  useEffect(() => {
    let frame = 0;
    const draw = () => {
      frame = 0;
      redraw((count) => count + 1);
    };
    const deaf = listen(() => (frame ||= requestAnimationFrame(draw)));
    return () => {
      deaf();
      cancelAnimationFrame(frame);
    };
  }, []);
  return writer;
}

const STEP = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10, Home: -Infinity, End: Infinity };

function Output({ tokens, begun, selected, select }) {
  const box = useRef();
  const keys = (event) => {
    if (!(event.key in STEP) || !tokens.length) return;
    event.preventDefault();
    const at = Math.min(Math.max(Math.max(selected, 0) + STEP[event.key], 0), tokens.length - 1);
    select(at);
    box.current.querySelector(`[data-at="${at}"]`)?.focus();
  };
  const pick = (event) => {
    const token = event.target.closest("[data-at]");
    if (token) select(Number(token.dataset.at));
  };
  return (
    <div class="output" ref={box}>
      <span class="given">{begun}</span>
      <span role={tokens.length ? "listbox" : undefined} aria-label={tokens.length ? "Tokens written" : undefined}
        aria-orientation={tokens.length ? "horizontal" : undefined} onKeyDown={keys} onClick={pick} onFocusIn={pick}>
        {runsOf(tokens).map((run, index) => <Run key={index} tokens={run} start={index * RUN} selected={selected} />)}
      </span>
    </div>
  );
}

export function Completion() {
  const { prompt, begun, tokens, figures, error, controller } = useWriter();
  const [selected, select] = useState(-1);
  const field = useRef();
  const busy = Boolean(controller);
  useEffect(() => field.current.focus(), []);
  const start = (event) => {
    event?.preventDefault();
    if (!writer.prompt || writer.controller) return;
    select(-1);
    write();
  };
  const keys = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) start(event);
    if (event.key === "Escape" && busy) stopWriting();
  };
  const speed = figures?.predicted_n > 1 && figures.predicted_per_second;
  return (
    <main class="completion" onKeyDown={keys}>
      <div class="column wide-column">
        <form onSubmit={start}>
          <label class="wide"><span>Text to go on from</span>
            <textarea ref={field} rows={5} value={prompt} placeholder="Four score and seven years ago"
              onInput={(event) => setPrompt(event.currentTarget.value)} />
          </label>
          <div class="buttons">
            <span class="hint">Ctrl+Enter writes, Esc stops</span>
            {busy ? <button type="button" class="primary" onClick={stopWriting}><Icon name="stop" /> Stop</button>
              : <button class="primary" disabled={!prompt}>Write on</button>}
          </div>
        </form>
        {error && <p class="trouble" role="alert">{error}</p>}
        {(tokens.length > 0 || busy) && (
          <div class="written">
            <section aria-label="Text written">
              <Output tokens={tokens} begun={begun} selected={selected} select={select} />
              <div class="buttons">
                <span class="figures">{tokens.length} tokens{speed ? ` · ${speed.toFixed(1)} tokens/s` : ""}</span>
                <span class="legend" aria-hidden="true">sure <i class="s0" /><i class="s1" /><i class="s2" /><i class="s3" /><i class="s4" /> surprising</span>
                <button type="button" class="quiet" disabled={busy || !tokens.length} onClick={() => {
                  adopt();
                  select(-1);
                  field.current.focus();
                }}>Take into the text above</button>
              </div>
            </section>
            <aside class="details" aria-live="polite" aria-label="Probabilities">
              <Details token={tokens[selected]} at={selected} busy={busy} />
            </aside>
          </div>
        )}
        <div class="offscreen" role="status">{busy ? "The model is writing" : tokens.length ? `${tokens.length} tokens written` : ""}</div>
      </div>
    </main>
  );
}
