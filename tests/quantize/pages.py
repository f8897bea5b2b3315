"""What a page looks like in a browser."""

from playwright.sync_api import Page

#: A phone, a laptop, a large screen.
WIDTHS = (500, 1280, 1920)

_CUT = """() => {
  const width = document.documentElement.clientWidth, found = [];
  const name = one => `${one.tagName} ${one.textContent.trim().slice(0, 40)}`;
  if (document.documentElement.scrollWidth > width) found.push('page');
  const all = 'table, td, th, p, li, h1, h2, h3, dd, svg, img, figure, section, code, summary';
  for (const one of document.querySelectorAll(all)) {
    const box = one.getBoundingClientRect();
    if (box.width && (box.left < -0.5 || box.right > width + 0.5)) found.push(name(one));
    if (one.clientWidth && one.scrollWidth > one.clientWidth + 1) found.push(name(one));
  }
  for (const svg of document.querySelectorAll('svg')) {
    const around = svg.getBoundingClientRect();
    for (const one of svg.querySelectorAll('text')) {
      const box = one.getBoundingClientRect();
      // Above and below letters a box has room for others.
      const room = box.height / 4;
      const outside = box.left < around.left - 1 || box.right > around.right + 1
        || box.top < around.top - room || box.bottom > around.bottom + room;
      if (outside) found.push(`${name(one)} ${JSON.stringify([box, around])}`);
    }
  }
  return found;
}"""


def cut(page: Page) -> list[str]:
    """What of a page reaches beyond the window, its own box or its plot."""
    found: list[str] = page.evaluate(_CUT)
    return found
