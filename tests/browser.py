"""Headless Chromium; tests that use it are skipped where there is none."""

import contextlib
import shutil
import urllib.parse

import pytest

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
# A test video instead of a webcam, which needs no permission.
FAKE_WEBCAM = [
  '--use-fake-ui-for-media-stream',
  '--use-fake-device-for-media-stream',
]


@contextlib.contextmanager
def open_page(url, width):
  """Opens a URL in a window of this width in pixels.

  On exit, fails if the console shows an error or if anything was requested
  from another machine.

  Yields:
    The `Page` of Playwright.
  """
  pytest.importorskip('playwright', reason='needs the extra dev')
  if not CHROMIUM:
    pytest.skip('needs chromium, such as the package of Debian')
  from playwright.sync_api import sync_playwright

  problems = []

  def check_message(message):
    if message.type == 'error':
      problems.append(f'{message.text} ({message.location["url"]})')

  def check_request(request):
    parts = urllib.parse.urlsplit(request.url)
    if parts.hostname not in (None, '', '127.0.0.1'):  # None: data and files
      problems.append(request.url)

  with sync_playwright() as playwright:
    browser = playwright.chromium.launch(
      executable_path=CHROMIUM, args=['--no-sandbox', *FAKE_WEBCAM]
    )
    page = browser.new_page(viewport={'width': width, 'height': 900})
    page.set_default_timeout(120_000)
    page.on('console', check_message)
    page.on('pageerror', lambda error: problems.append(str(error)))
    page.on('request', check_request)
    page.goto(url)
    yield page
    browser.close()
  assert problems == []


def layout_faults(page) -> list[str]:
  """Returns broken images, and elements wider than the window, as HTML."""
  # Images below the visible part may load when they are scrolled to.
  return page.evaluate("""async () => {
    const images = [...document.querySelectorAll('img[src]')]
    images.forEach(image => { image.loading = 'eager' })
    await Promise.all(images.map(image => image.decode().catch(() => {})))
    const faults = images.filter(image => !image.naturalWidth)
    const root = document.documentElement
    if (root.scrollWidth > root.clientWidth) {
      const limit = root.clientWidth
      faults.push(root, ...[...document.body.querySelectorAll('*')].filter(
        element => element.getBoundingClientRect().right > limit))
    }
    return faults.map(element => element.outerHTML.slice(0, 200))
  }""")
