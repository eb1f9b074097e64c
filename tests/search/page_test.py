"""The page in a real browser, headless Chromium; skipped where there is none."""

import shutil

import pytest

from mg_keras.search.album import Album
from mg_keras.search.http_api import SearchServer
from tests.search.fake import FakeModel, album, noise

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

from selenium.common.exceptions import StaleElementReferenceException  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

HOSTILE = "<img src=x onerror=document.title='taken'>.png"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")), reason="Chromium and its driver are not there"
    ),
]


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"):
        options.add_argument(argument)
    # the driver that is there: Selenium would look for one elsewhere
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """12 photos, one of them twice and once smaller, and one with a hostile name."""
    root = tmp_path_factory.mktemp("page")
    paths = album(root / "photos", 12)
    shutil.copy(paths[0], root / "photos" / "twice.png")
    noise(1, (12, 12)).save(root / "photos" / "small.jpg", quality=95)
    noise(50).save(root / "photos" / HOSTILE)
    return root


@pytest.fixture(scope="module", params=[None, "a-token-of-the-test"], ids=["open", "token"])
def place(photos, request):
    """Where the page is, and the token that it asks for."""
    searched = Album(photos / "photos", FakeModel(), photos / f"index{request.param is not None}")
    searched.update()
    searched.wait()
    server = SearchServer(searched, **({"token": request.param} if request.param else {}))
    server.start()
    yield f"http://127.0.0.1:{server.port}", request.param
    server.stop()
    searched.stop()


@pytest.fixture
def page(browser, place):
    address, token = place
    browser.get(f"{address}/?token={token}" if token else address)
    wait(browser, lambda found: "15" in found.find_element(By.ID, "state").text)
    return browser


def names(page, row):
    # in one go: the page may be drawing them anew
    texts = "return [...document.querySelectorAll(arguments[0])].map(each => each.textContent)"
    return page.execute_script(texts, f"section[data-row={row}] .tile .name")


def wait(page, condition):
    WebDriverWait(page, 20, ignored_exceptions=[StaleElementReferenceException]).until(condition)


def search_by(page, path):
    page.find_element(By.ID, "file").send_keys(str(path))
    wait(page, lambda found: names(found, "copies"))


def test_a_dropped_photo_finds_its_copies_and_its_kind(page, photos):
    search_by(page, photos / "photos" / "00001.png")
    assert set(names(page, "copies")) == {"00001.png", "small.jpg"}
    assert names(page, "kind")
    # a found photo is the next query
    first = names(page, "kind")[0]
    page.find_element(By.CSS_SELECTOR, "section[data-row=kind] .tile .open").click()
    wait(page, lambda found: first in found.find_element(By.ID, "query-name").text)


def test_the_album_is_filtered_by_class(page):
    page.find_element(By.ID, "tab-album").click()
    tiles = (By.CSS_SELECTOR, "#album .tile")
    wait(page, lambda found: len(found.find_elements(*tiles)) == 15)
    page.find_elements(By.CSS_SELECTOR, "#album-chips button")[1].click()
    wait(page, lambda found: 0 < len(found.find_elements(*tiles)) < 15)


def test_duplicates_can_be_skipped(page):
    page.find_element(By.ID, "tab-duplicates").click()
    page.find_element(By.ID, "compare").click()
    groups = (By.CSS_SELECTOR, "#groups .group")
    wait(page, lambda found: len(found.find_elements(*groups)) >= 2)
    page.find_element(By.CSS_SELECTOR, ".group .skip").click()
    assert "skipped" in page.find_element(*groups).get_attribute("class")
    page.find_element(By.CSS_SELECTOR, ".group .skip").click()
    assert "skipped" not in page.find_element(*groups).get_attribute("class")


def test_a_hostile_name_is_only_a_name(page, photos):
    search_by(page, photos / "photos" / HOSTILE)
    assert HOSTILE in names(page, "copies")
    assert page.title != "taken"
    assert not page.find_elements(By.CSS_SELECTOR, "img[src='x']")


def test_without_the_token_nothing_is_shown(browser, place):
    address, token = place
    if token is None:
        pytest.skip("this server asks for none")
    browser.delete_all_cookies()
    browser.get(address)
    assert not browser.find_elements(By.ID, "drop")
    assert browser.find_elements(By.CSS_SELECTOR, "input")
