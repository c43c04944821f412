// Markdown on the page: finished text, and text that is still being written.
import { Component } from "preact";
import { useEffect, useMemo, useState } from "preact/hooks";
import { blocks, GrowingMarkdown } from "./markdown.js";

class Block extends Component {
  shouldComponentUpdate(next) {
    return next.html !== this.props.html;
  }
  // The HTML comes from markdown.js, which escapes and sanitises.
  render = () => <div dangerouslySetInnerHTML={{ __html: this.props.html }} />;
}

const Blocks = ({ html }) => (
  <div class="prose">
    {html.map((one, index) => (
      <Block key={index} html={one} />
    ))}
  </div>
);

export function Prose({ text }) {
  return <Blocks html={useMemo(() => blocks(text), [text])} />;
}

/** Draws at most once a frame, and seldom enough that drawing takes a fifth of the time. */
export function Growing({ answer, children }) {
  const [drawn, setDrawn] = useState({ html: [] });
  useEffect(() => {
    const markdown = new GrowingMarkdown();
    let frame = 0;
    let due = 0;
    const draw = () => {
      const begun = performance.now();
      if (begun < due) {
        frame = requestAnimationFrame(draw);
        return;
      }
      frame = 0;
      setDrawn({ html: markdown.blocks(answer.content), thinking: answer.thinking, progress: answer.progress });
      due = performance.now() + 4 * (performance.now() - begun);
    };
    const changed = () => (frame ||= requestAnimationFrame(draw));
    changed();
    const deaf = answer.listen(changed);
    return () => {
      deaf();
      cancelAnimationFrame(frame);
    };
  }, [answer]);
  return children({ body: <Blocks html={drawn.html} />, ...drawn });
}
