"""The review page: what is written, what is kept, what the server refuses, and the page in a real browser."""

import base64
import http.client
import json
import re
import shutil
import threading
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from amn_fast.cli import app
from amn_fast.data.image import read_mask
from amn_fast.data.masks import write_mask
from amn_fast.data.store import read_activations
from amn_fast.errors import InputError
from amn_fast.ops.mask import mask_from_scores
from amn_fast.pipeline.inference import read_edge
from amn_fast.review.decisions import read_decisions, write_decisions
from amn_fast.review.doubt import doubt
from amn_fast.review.page import LEVELS, build_page, thumbnail_size
from amn_fast.review.server import address, make_server
from amn_fast.review.source import run_config
from amn_fast.steps.mask import scores


def read_script(path):
    return json.loads(re.fullmatch(r"window\.\w+ = (.*);\n", path.read_text(), re.DOTALL)[1])


def read_map(folder, item):
    call = (folder / "maps" / f"{item['key']}.js").read_text()
    key, width, height, content = re.fullmatch(r'window\.reviewMap\("(\w+)",(\d+),(\d+),"([^"]*)"\);\n', call).groups()
    assert key == item["key"]
    return np.frombuffer(zlib.decompress(base64.b64decode(content)), np.uint8).reshape(-1, int(height), int(width))


def test_doubt():
    assert doubt(np.zeros((0, 3, 4))) == 0
    assert doubt(np.array([[[0.3, 0.36, 0.66, 0.1]], [[0.5, 0.1, 0.1, 0.7]]])) == pytest.approx(0.5)


@pytest.mark.parametrize("size", [(24, 32), (501, 43)])
def test_maps_hold_the_mask_at_every_threshold(make_run, size):
    """Each pixel of a map is make-mask's answer for the image's pixel under its centre, at all 201 thresholds."""
    run = make_run(3, size)
    page = build_page(run)
    data = read_script(page.folder / "data.js")
    assert [item["id"] for item in data["items"]] == list(page.ids)
    height, width = thumbnail_size(size)
    assert max(height, width) <= 400
    for item in data["items"]:
        found = read_activations(run / "amn" / f"{item['id']}.npz")
        maps = scores(found, read_edge(run / "edge" / f"{item['id']}.npz"), run_config(run).mask)
        mask = read_mask(run / "masks" / f"{item['id']}.png")
        rows = ((np.arange(height) + 0.5) * size[0] // height).astype(int)
        at = np.ix_(rows, ((np.arange(width) + 0.5) * size[1] // width).astype(int))
        stored, level, label = read_map(page.folder, item)
        np.testing.assert_array_equal(stored, mask[at])
        for k in range(LEVELS + 1):
            # k / 200 is not exact in float32: a score within rounding of the threshold may fall on either side
            expected = mask_from_scores(maps, [0, *found.keys], k / LEVELS)[at]
            differs = np.where(level > k, label, 0) != expected
            assert not differs.any() or np.abs(maps.max(0)[at][differs] - k / LEVELS).max() < 1e-6
        assert item["doubt"] == pytest.approx(doubt(maps), abs=1e-4)
        assert item["classes"] == [k for k in np.unique(mask) if k]


def test_the_order_is_that_of_the_run(make_run):
    run = make_run(3)
    own = {item["id"]: item["doubt"] for item in read_script(build_page(run).folder / "data.js")["items"]}
    first, second, third = own
    (run / "doubt.csv").write_text(f"image,doubt\n{second},0.75\n{first},0.5\n")
    page = build_page(run)
    assert page.built == 0
    found = {item["id"]: item["doubt"] for item in read_script(page.folder / "data.js")["items"]}
    assert found == {first: 0.5, second: 0.75, third: own[third]}
    (run / "doubt.csv").write_text("image,doubt\nx,much\n")
    with pytest.raises(InputError, match="expected what check-run writes"):
        build_page(run)


def test_a_second_build_keeps_decisions_and_computes_what_changed(make_run):
    run = make_run(6)
    first = build_page(run)
    assert (first.built, first.failures) == (6, {})
    items = {item["id"]: item for item in read_script(first.folder / "data.js")["items"]}
    entries = {id: {"status": "accepted", "time": 5, "mask": items[id]["mask"]} for id in list(items)[:2]}
    write_decisions(first.decisions, entries)
    changed, broken, bare = list(items)[1:4]
    write_mask(run / "masks" / f"{changed}.png", np.full((24, 32), 2, np.uint8))
    (run / "masks" / f"{broken}.png").write_bytes(b"\x89PNG")
    (run / "edge" / f"{bare}.npz").unlink()
    with (first.folder / "items.jsonl").open("a") as file:
        file.write('{"id": "image 0000')
    second = build_page(run)
    assert second.built == 3
    assert set(second.failures) == {broken}
    assert read_decisions(second.decisions) == entries == read_script(second.folder / "decisions.js")
    now = {item["id"]: item for item in read_script(second.folder / "data.js")["items"]}
    assert now[changed]["mask"] != entries[changed]["mask"]
    assert (now[bare]["scored"], now[bare]["doubt"], len(read_map(second.folder, now[bare]))) == (False, None, 1)
    assert f"{broken}.png" in now[broken]["failure"]
    assert build_page(run).built == 0
    second.decisions.write_text("{}")
    with pytest.raises(InputError, match="not a file of decisions"):
        build_page(run)
    with pytest.raises(InputError, match="not a run folder"):
        build_page(run / "masks")


@contextmanager
def serving(page):
    with make_server(page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def test_the_server_answers_its_own_page_only(make_run):
    run = make_run(2)
    page = build_page(run)
    (run / "secret.txt").write_text("secret")
    item = read_script(page.folder / "data.js")["items"][1]
    entry = {"status": "rejected", "time": 1, "mask": item["mask"]}
    good = json.dumps({item["id"]: entry})
    with serving(page) as server:
        host = f"127.0.0.1:{server.server_port}"
        headers = {"Content-Type": "application/json"}

        def ask(method, path, body=None, **more):
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
            connection.putrequest(method, path, skip_host=True)
            for name, value in {"Host": host, **more}.items():
                connection.putheader(name.replace("_", "-"), value)
            if body is not None and "Content_Length" not in more:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body.encode() if body is not None else None)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            return answer.status, content

        for path in ("/", "/index.html", "/data.js?x", f"/thumbs/{item['key']}.jpg", f"/maps/{item['key']}.js"):
            assert ask("GET", path)[0] == 200, path
        for path in ("/../secret.txt", "/..%2fsecret.txt", "/thumbs/../../secret.txt", "//etc/passwd", "/items.jsonl",
                     "/thumbs/..jpg", "/maps/no.js", "/decisions.json", "/thumbs/\\..\\x.jpg", "/thumbs/"):  # fmt: skip
            assert ask("GET", path)[0] == 404, path
        for more in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"},
                     {"Host": f"evil.example:{server.server_port}"}):  # fmt: skip
            assert ask("GET", "/", **more)[0] == 403, more
            assert ask("POST", "/decisions", good, Content_Type="application/json", **more)[0] == 403, more
        assert not page.decisions.exists()
        entries = [[], {"no": entry}, {item["id"]: {**entry, "status": "x"}}, {item["id"]: {**entry, "time": "1"}},
                   {item["id"]: {"status": "rejected"}}, {item["id"]: {**entry, "more": 1}}]  # fmt: skip
        for body in ("", "{", *map(json.dumps, entries)):
            assert ask("POST", "/decisions", body, Content_Type="application/json")[0] == 400, body
        assert ask("POST", "/decisions", good, Content_Type="text/plain")[0] == 400
        assert ask("POST", "/decisions", good, Content_Type="application/json", Content_Length="99999999999")[0] == 400
        assert ask("POST", "/else", good, Content_Type="application/json")[0] == 400
        assert not page.decisions.exists()
        assert headers
        origin = {"Origin": f"http://{host}", "Content_Type": "application/json"}
        assert ask("POST", "/decisions", good, **origin) == (200, b"saved")
        assert read_decisions(page.decisions) == {item["id"]: entry}
        assert entry["mask"].encode() in ask("GET", "/decisions.js")[1]
        assert ask("POST", "/decisions", json.dumps({item["id"]: None}), **origin)[0] == 200
        assert read_decisions(page.decisions) == {}
        with pytest.raises(InputError, match="cannot be used"):
            make_server(page, server.server_port)


@pytest.fixture
def browser(tmp_path):
    """Debian's chromium, headless, with a profile of its own."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-dev-shm-usage",
                 "disable-background-networking", "disable-component-update", "disable-sync",
                 f"user-data-dir={tmp_path / 'profile'}", "window-size=1400,900"):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    opened.set_page_load_timeout(60)
    yield opened
    opened.quit()


def test_the_page_in_a_browser(make_run, browser, tmp_path):
    """1,000 images: filter, mark three by keyboard, reopen, export; then the same page as a file."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select, WebDriverWait

    run = make_run(1000)
    page = build_page(run)
    items = read_script(page.folder / "data.js")["items"]

    def find(selector):
        return browser.find_elements(By.CSS_SELECTOR, selector)

    def wait(condition):
        WebDriverWait(browser, 120).until(lambda _: condition())

    def press(*keys):
        for key in keys:
            ActionChains(browser).send_keys(key).perform()

    def ids():
        return [card.get_attribute("data-id") for card in find(".card")]

    with serving(page) as server:
        browser.get(address(server))
        wait(lambda: find(".card.here canvas[data-pixels]"))
        doubtful = sorted(items, key=lambda item: -item["doubt"])
        assert ids() == [item["id"] for item in doubtful[:60]]
        assert find("#count")[0].text.startswith("1000 of 1000 images; 0 accepted")
        assert "1 of 17" in find("#page")[0].text
        press(Keys.PAGE_DOWN, Keys.ARROW_RIGHT)
        assert find("#id")[0].text == doubtful[61]["id"]

        Select(find("#class")[0]).select_by_visible_text("<img src=x onerror=alert(1)>")
        find("#low")[0].clear()
        find("#low")[0].send_keys("0.1", Keys.ENTER)
        wanted = [item for item in doubtful if 2 in item["classes"] and item["doubt"] >= 0.1]
        assert ids() == [item["id"] for item in wanted[:60]]
        press("n", Keys.ARROW_RIGHT, "a", "r")
        marked = dict(zip([wanted[0]["id"], wanted[2]["id"], wanted[3]["id"]],
                          ["needs-work", "accepted", "rejected"], strict=True))  # fmt: skip
        wait(lambda: find("#saved")[0].text == "saved")
        saved = read_decisions(page.decisions)
        assert {id: entry["status"] for id, entry in saved.items()} == marked

        # the slider shows the mask of make-mask at another threshold
        wait(lambda: find("#large canvas[data-pixels]"))
        shown = items[[item["id"] for item in items].index(find("#id")[0].text)]
        level = read_map(page.folder, shown)[1]
        press(*[","] * 10)
        assert find("#threshold")[0].text == "0.150"
        assert int(find("#large canvas")[0].get_attribute("data-pixels")) == np.count_nonzero(level > 30)

        browser.refresh()
        Select(find("#status")[0]).select_by_visible_text("needs work")
        assert ids() == [wanted[0]["id"]]
        assert [card.text for card in find(".card .status")] == ["needs work"]
        Select(find("#status")[0]).select_by_visible_text("all")
        find("#search")[0].send_keys("<i>")
        assert [name.text for name in find(".card .id")] == ["<i>&\"'[b]"]
        assert find("h1")[0].text == "Review: <b>test</b>"
        assert not browser.get_log("browser")

    build_page(run)
    out = tmp_path / "out"
    arguments = ["export", str(run), str(out), "--to", "coco", "--only", "needs-work"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    exported = json.loads((out / "annotations.json").read_text())
    assert [Path(image["file_name"]).stem for image in exported["images"]] == [wanted[0]["id"]]

    browser.get((page.folder / "index.html").as_uri())
    wait(lambda: find(".card.here canvas[data-pixels]"))
    assert "1 accepted, 1 need work, 1 rejected" in find("#count")[0].text
    press("a", "a")
    browser.refresh()
    assert "3 accepted" in find("#count")[0].text or "2 accepted" in find("#count")[0].text
    assert not browser.get_log("browser")
