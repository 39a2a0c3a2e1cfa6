"""Marks of images that are other models'."""

import pytest

from mmalign.data import Turn, marks
from mmalign.data.reasons import Unusable


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("see <image_1>", "<image_1>"), ("<image 2>", "<image 2>"), ("<Image> a", "<Image>"), ("<IMAGE>", "<IMAGE>"),
        ("<ImageHere> a", "<ImageHere>"), ("<img>images/4.jpg</img>", "<img>"), ('<img src="a.jpg">', "<img ...>"),
        ("<|image_pad|>", "<|image_pad|>"), ("<|vision_start|>", "<|vision_start|>"), ("<|image_1|>", "<|image_1|>"),
        ("<start_of_image>", "<start_of_image>"), ("<image_soft_token>", "<image_soft_token>"), ("[IMG]", "[IMG]"),
        ("[image_1]", "[image_1]"), ("<|image|>", "<|image|>"), ("<image_placeholder>", "<image_placeholder>"),
        ("<video>", "<video>"), ("<image-1>", "<image-1>"), ("<IMG_CONTEXT>", "<IMG_CONTEXT>"),
        ("<im_patch>", "<im_patch>"), ("a <image/>", "<image/>"), ("(<image>./</image>)", "</image>"),
        ("<fake_token_around_image>", "<fake_token_around_image>"), ("<|media_pad|>", "<|media_pad|>"),
        ("<|endofimage|>", "<|endofimage|>"), ("<global-img>", "<global-img>"), ("<image:0>", "<image:0>"),
        ("[IMG_BREAK]", "[IMG_BREAK]"), ("&lt;image&gt; a", "&lt;image&gt;"), ("![a cat](x/0.jpg)", "![...](...)"),
        ("see ![](https://a/b.png).", "![...](...)"), ("<|vis_start|>", "<|vis_start|>"),
    ],
)  # fmt: skip
def test_foreign_marks(text, mark):
    assert list(marks.foreign([Turn("user", text)])) == [mark]
    assert marks.note(mark) == f"rows with {mark} in a text, where it stays text: the mark of an image is <image>"


@pytest.mark.parametrize("text", ["<image> a", "an image", "<imagine>", "[imagine]", "a < image > b", "<p>", "x[1]",
                                  "[image](a.png)", "wow![x] (y)",
                                  "!a[0](b)", "&lt;p&gt;", "<|im_start|>"])  # fmt: skip
def test_ordinary_text_is_no_mark(text):
    assert list(marks.foreign([Turn("user", text)])) == []


def test_a_wrong_number_of_marks_tells_of_the_others():
    with pytest.raises(Unusable, match="1 <image> marks for 2 images") as caught:
        marks.place([Turn("user", "<image> <image_2>"), Turn("assistant", "a")], 2)
    assert caught.value.fix == "<image_2> is no mark: <image> is"
