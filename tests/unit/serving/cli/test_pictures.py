"""Pictures of the command line are those that the server sees."""

from __future__ import annotations

import numpy as np
import pytest

from serving.client.pictures import BadPicture, load_picture
from serving.media.decode import decode
from serving.media.limits import MediaLimits
from tests.support import image_cases


@pytest.mark.parametrize("name", image_cases.SAME_PIXELS_AS)
def test_boxes_are_drawn_upon_what_the_server_sees(name: str) -> None:
    opened = load_picture(str(image_cases.FOLDER / name)).open()
    np.testing.assert_array_equal(np.asarray(opened), decode(image_cases.load_twin(name), MediaLimits()).rgb)


@pytest.mark.parametrize("name", image_cases.REFUSED)
def test_what_the_server_refuses_is_not_drawn_upon(name: str) -> None:
    with pytest.raises(BadPicture, match="cannot be decoded"):
        load_picture(str(image_cases.FOLDER / name)).open()


@pytest.mark.parametrize("url", ["https://example.org/a.png", "data:image/png;base64,AAAA", "DATA:,x"])
def test_urls_are_taken_as_they_are(url: str) -> None:
    picture = load_picture(url)
    assert picture.url == url
    with pytest.raises(BadPicture, match="is a URL"):
        picture.open()
    assert len(load_picture("data:," + "x" * 1000).name) < 80
