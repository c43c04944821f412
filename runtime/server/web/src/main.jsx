import { render } from "preact";
import { App } from "./app.jsx";
import { start } from "./chats.js";
import { applyTheme } from "./settings.js";
import { get } from "./state.js";

applyTheme(get().settings.theme);
render(<App />, document.getElementById("app"));
start();
