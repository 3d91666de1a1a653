import moondream
from PIL import Image
from scene import BASE_URL, CAPTION, FILE, HOW_MANY

model = moondream.vl(endpoint=BASE_URL)
picture = Image.open(FILE)


def test_captions_and_queries() -> None:
    assert model.caption(picture, length="short")["caption"] == CAPTION
    assert model.query(picture, HOW_MANY)["answer"] == "3"
    pieces = model.caption(picture, length="short", stream=True)["caption"]
    assert "".join(pieces) == CAPTION
    encoded = model.encode_image(picture)
    assert model.query(encoded, HOW_MANY, stream=False)["answer"] == "3"
    assert "circle" in model.query(picture, HOW_MANY, reasoning=True)["reasoning"]["text"]


def test_boxes_and_points() -> None:
    (box,) = model.detect(picture, "blue square")["objects"]
    (point,) = model.point(picture, "blue square")["points"]
    assert box["x_min"] < point["x"] < box["x_max"]
    assert box["y_min"] < point["y"] < box["y_max"]
