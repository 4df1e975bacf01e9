"""The measure of contrast that the other tests use, on colours whose contrast is known."""

from typing import Any

import pytest
from lab import CONTRASTS, READABLE

pytestmark = pytest.mark.browser

PAGE = """<body style="background: #fff">
<p style="color: #000">black</p>
<p style="color: #777">grey</p>
<div style="background: #000"><p style="color: #fff; background: rgba(255, 255, 255, 0.5)">half</p></div>
<p style="color: #fff">invisible</p>
<p style="display: none">not shown</p>
</body>"""


def test_contrasts_are_those_of_the_guidelines(chromium: Any) -> None:
    page = chromium.new_page()
    page.set_content(PAGE)
    found = {text: ratio for ratio, text in page.locator("body").evaluate(CONTRASTS)}
    page.close()
    assert found == pytest.approx({"black": 21, "grey": 4.48, "half": 3.95, "invisible": 1}, abs=0.05)
    assert [text for text, ratio in found.items() if ratio < READABLE] == ["grey", "half", "invisible"]
