"""Every page of the site, as Chromium shows it on a notebook's and on a telephone's screen."""

import functools
import http.server
import shutil
import threading

import pytest

WIDTHS = {"notebook": 1366, "telephone": 390}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

# Of the loaded page, what a reader could not see: a list of texts, empty where all is well. Lines of code are compared
# with the copy button in the place where they are shown, that is within the part of the block that is not scrolled off.
FAULTS = """
() => {
  const faults = [];
  const name = node => `<${node.localName}> ${(node.alt || node.textContent).trim().slice(0, 50)}`;
  const scrolls = node => ["auto", "scroll"].includes(getComputedStyle(node).overflowX);
  const root = document.documentElement;
  if (root.scrollWidth > innerWidth) faults.push(`the page is ${root.scrollWidth} pixels wide`);
  const article = document.querySelector(".md-content__inner");
  const column = article.getBoundingClientRect();
  // On a telephone blocks of code take the margins, too.
  const whole = (article.closest(".md-content") ?? article).getBoundingClientRect();
  for (const node of article.querySelectorAll("table, pre, img, svg, math, h1, h2, h3")) {
    const box = node.getBoundingClientRect();
    let container = node.parentElement;
    while (container !== article && !(node.localName !== "pre" && scrolls(container)))
      container = container.parentElement;
    const bounds = node.localName === "pre" ? whole : column;
    if (container === article && box.width && (box.right > bounds.right + 1 || box.left < bounds.left - 1))
      faults.push(`${name(node)} reaches from ${box.left} to ${box.right}, beyond the column`);
  }
  for (const pre of article.querySelectorAll("pre")) {
    const code = pre.querySelector("code") ?? pre;  // those of notebooks have none
    if (code.scrollWidth > code.clientWidth + 1 && !scrolls(code)) faults.push(`${name(code)} is cut off`);
    const shown = code.getBoundingClientRect();
    const block = pre.closest(".jp-InputArea-editor") ?? pre;
    const button = block.querySelector("button, clipboard-copy")?.getBoundingClientRect();
    const range = document.createRange();
    range.selectNodeContents(code);
    for (const line of button ? range.getClientRects() : []) {
      const right = Math.min(line.right, shown.right);
      if (right > button.left && line.left < button.right && line.bottom > button.top && line.top < button.bottom)
        faults.push(`${name(code)}: a line ends at ${right}, under the button at ${button.left}`);
    }
  }
  for (const image of article.querySelectorAll("img"))
    if (!image.complete || !image.naturalWidth) faults.push(`${name(image)}: ${image.src} is not shown`);
  return faults;
}
"""


@pytest.fixture(scope="module")
def address(site):
    """Where the site is served."""
    folder, _ = site

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    installed = [path for path in map(shutil.which, BROWSERS) if path]
    if not installed:
        pytest.skip("there is no Chromium to look at the site with: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=installed[0], args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


def pages_of(site):
    folder, _ = site
    return sorted(page.parent.relative_to(folder).as_posix() for page in folder.rglob("index.html"))


def look(browser, address, pages, width):
    """Loads pages; gives what is wrong with them, and the addresses that they asked for elsewhere."""
    context = browser.new_context(viewport={"width": width, "height": 768})
    tab = context.new_page()
    foreign, faults = [], []
    tab.on(
        "request", lambda request: request.url.startswith((address, "data:", "blob:")) or foreign.append(request.url)
    )
    tab.on("pageerror", lambda error: faults.append(str(error)))
    for page in pages:
        tab.goto(f"{address}{page}/")
        tab.wait_for_function(
            "document.querySelectorAll('.highlight pre').length == 0 || "
            "document.querySelector('.highlight pre button') !== null"
        )
        faults += [f"{page}: {fault}" for fault in tab.evaluate(FAULTS)]
    context.close()
    return faults, foreign


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_nothing_is_cut_off_and_no_other_host_is_asked(site, address, browser, width):
    pages = pages_of(site)
    assert len(pages) > 40
    faults, foreign = look(browser, address, pages, width)
    assert not faults, "\n".join(faults)
    assert not foreign


@pytest.mark.slow
def test_the_look_sees_what_is_wrong(browser, tmp_path):
    """Each fault on a page of its own, and one page without."""
    start = "<style>body{margin:0} pre{position:relative;margin:0} button{position:absolute;top:0;right:0;width:30px}"
    start += ".s{overflow-x:auto;display:block}</style><div class=md-content__inner>"
    wide = "x" * 400
    seen = {
        "": [],
        f"<div class=s><table><td>{wide}</table></div><pre><code class=s>{wide}</code></pre>": [],
        f"<table><td>{wide}</table>": ["the page is", "beyond the column"],
        f"<div style='overflow:hidden'><pre><code style='display:block;overflow:hidden'>{wide}</code></pre></div>": [
            "is cut off"
        ],
        f"<pre><button>c</button><code class=s>{wide}</code></pre>": ["under the button"],
        f"<pre style='padding-right:40px'><button>c</button><code class=s>{wide}</code></pre>": [],
        "<img src='data:image/png;base64,x' alt=broken>": ["is not shown"],
    }
    tab = browser.new_page(viewport={"width": 390, "height": 768})
    for body, expected in seen.items():
        tab.set_content(start + body)
        faults = tab.evaluate(FAULTS)
        assert len(faults) == len(expected), (body[:60], faults)
        assert all(part in fault for part, fault in zip(expected, faults, strict=True)), faults
