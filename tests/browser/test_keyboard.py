"""Every page without a mouse: tabbing alone comes to every control."""

import pytest

from .conftest import settle
from .test_pages import PAGES

pytestmark = [pytest.mark.browser, pytest.mark.slow]
ALL = PAGES | {"finding": "/findings?f=villain-latent", "present": "/present?f=villain-latent"}
IN_SHORT = ("compare", "diffing")  # the other pages in `make test-all`
MOST_CONTROLS = 600

WATCH = """() => {
  window.reached = new Set();
  addEventListener('focusin', event => window.reached.add(event.composedPath()[0]), true);
}"""
HAS_COME_ROUND = """() => {
  window.first ??= document.activeElement;
  return window.reached.size > 1 && document.activeElement === window.first;
}"""
# Arrow keys go on inside a view of tokens, a row of tabs or of choices, and do what the small buttons of a field do, which are for the mouse alone.
LEFT_OUT = """() => {
  const KINDS = 'a[href], button, input, select, textarea, summary, canvas, [tabindex], [contenteditable=true], '
    + ['button', 'checkbox', 'combobox', 'link', 'option', 'radio', 'slider', 'switch', 'tab', 'textbox'].map(role => `[role=${role}]`).join();
  const all = root => [...root.querySelectorAll('*')].flatMap(element => [element, ...(element.shadowRoot ? all(element.shadowRoot) : [])]);
  const isShown = element => element.checkVisibility({ visibilityProperty: true }) && element.getBoundingClientRect().width > 0;
  const whole = element => element.closest('.panels, [role=radiogroup], [role=tablist]') ?? (element.tabIndex < 0 ? element.closest('[data-testid=stElementContainer]') : null);
  const isReached = element => window.reached.has(element) || [...window.reached].some(other => whole(element)?.contains(other));
  return all(document).filter(element => element.matches(KINDS) && !element.disabled && isShown(element) && !isReached(element)).map(element => element.outerHTML.slice(0, 200));
}"""


@pytest.mark.parametrize("page_name", [name if name in IN_SHORT else pytest.param(name, marks=pytest.mark.extended) for name in ALL])
def test_tabbing_alone_reaches_every_control(page_name: str, server: str, new_page):
    page = new_page(server + ALL[page_name])
    settle(page)
    page.evaluate(WATCH)
    for _ in range(MOST_CONTROLS):
        page.keyboard.press("Tab")
        if page.evaluate(HAS_COME_ROUND):
            break
    settle(page)
    assert page.evaluate(LEFT_OUT) == []
