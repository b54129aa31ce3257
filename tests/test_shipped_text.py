"""The calibration text, and what is kept out of it to evaluate, were read: nothing hateful, sexual or violent in them,
and nothing that says how to reach anybody.

The words are kept as the first 8 hex digits of their sha256, so that this file can be read by everybody. A list cannot
stand in for reading; it holds what reading found, and what a resampled text would bring back first.
"""

import hashlib
import re
from pathlib import Path

import pytest

from nxdi_svd_plugin.texts import BUILTIN, MIXED, read_text

UNWANTED = set(
    """
0033728f 003394ba 00d1f172 0164940a 0405c248 045e7a2e 04635ac9 0508a634 056dc4cc 05b8b79e 0631a609 0632813d 064fa6ad
08a841e9 097a2cd8 098593a0 0a6b4744 0a972f61 0c13b4d7 0d38e0ec 0dcc4d33 0ebdc331 11cf8376 11f4eb42 120f6e5b 127c6aef
12a667c9 139d14b6 13a465fc 13a5e8d6 1551d1eb 158869a9 15b45021 167a79b5 16ea09fc 183936b0 1afc813c 1afdb873 1b830448
1d3f1bf3 1d975dda 1ddc6c72 1e02eec4 205ddfe4 21788507 21b5d624 21ff590c 235e2853 246d6f7a 253221cb 26033e08 268651b3
278f2830 27a45e0e 27add1fb 27ec4ab2 28a3a5e8 2a6937d7 2a6abca4 2bda9b4d 2c1d8af3 2ca80872 2d66da9f 2e7af2bf 2f34b7a4
304bf48b 31506a84 368a7ff1 36f4662d 376be72e 38012c26 38136d6e 38159147 39107659 3963ba2b 39c7ad80 3a4fcd94 3b1e0d7c
3bb6e464 3c3bd763 3cf48f3b 3dd2b64a 3e8e40c0 3ef0b158 3f8b4464 4090e2b7 412d4043 42c75396 4355ccc2 439f1531 4426e54c
44d3f3e9 460ed72c 4b18aefe 4d591b76 4db16eb9 4ed5f47a 5055fa00 5072f198 522788b6 52c8e029 5304378d 533f8cc0 54454805
5468b428 5568b6d3 55ff05b1 5676bd61 5723360e 5745d3cf 57c49918 586acb3c 59a2418c 59cc3cb8 59d4432e 5a1f63fd 5a9d9dce
5b3ae48b 5c2583a1 5c294d29 5ddf61f4 62ee6c11 64e591a7 68da4167 698ea98f 6ac3c336 6c9d9f81 6eb0d721 6eccae68 6ef9d9fd
6fcf32bf 701d6943 70fc4b74 73d77bdb 73f80633 76f03622 77173ace 779e6186 7825e569 78a00d18 793739b9 7bc67115 7cfd9315
7dae96c3 7dca86b8 7e85c676 7e921de4 7f5a9ba1 818efe46 822cb741 82bbcd63 84ef9e57 85a32e33 85fc17f7 863498df 867d7897
86fb8a2c 885f94e3 886d51e9 899c3f16 8b6f82db 8bedb0f8 8c5c0439 8c9a2633 8ca2dcb0 8d1ae626 8d54cc8c 8ea748b0 8f16aaa0
8f2c8562 8f3bbf97 8f5083e3 90cf7653 9270c8c3 937d56e4 9499e6ae 9557070a 974b5d24 983f164b 9849bf00 986c9900 98d44e13
9a9cc4cc 9ae315a9 9bbfd9ee 9dfd0dc6 a0f6a358 a1c1a3b7 a2d8daa4 a32876c6 a3686065 a4c7815e a52ff550 a54e71f0 a60a5238
a6aadb3d a6ee0e6b a76d588d a8d79f40 a8fd10a4 a9f41dff aaaa64a3 aaf3aa11 ab080737 ab26f696 ac879035 ac996ae4 acefec68
ad2d623e af681942 affc8757 b159f929 b43cbb46 b4ca32d7 b56b7866 b5c1fb2e b652ea88 b690cdbe b81d6dc2 b88a33fd ba6fb01a
ba7463ed bb61ef40 bb87adf8 bba00b18 bd331fb1 bd778891 bf141eb3 c22f315f c2c3b68b c2d214a4 c3de533e c541221e c685c920
c8d92aa5 c91d7a20 c9f3c15a cc020323 ccbbe5c4 cccc68c7 ce3fd181 d17ef521 d1bbb220 d208a0f7 d31f9b0c d5405925 d75a838d
dc689513 dcb85fcf dd32831e ddc919be de5d4b32 e041c609 e11dc1da e1490e2a e1823098 e1b73076 e24dd221 e2560bc5 e388b898
e3dc18bf e4010593 e46b26fc e512a055 e66e9a76 e6836793 e84dde50 e99d5524 e9b64384 eafd5120 eb0afd90 eb75f071 eb9b0354
ebc98c1e ebec03d8 ebf1cce0 ecaedc5e ed45d626 ee6f01a9 eef3bd09 ef9ab3d7 eff26b18 f0c913ec f1d6a553 f23f9e86 f2b5ed7f
f2e9a23a f38dea1d f4385182 f5778592 f59e28f8 f6952d6e f6a9dcb1 f8e36d2d f9d0d9b1 fa1597ae fa376566 fa7418ee fa991a15
fab862fc fb4e71f7 fb8e5dfa fc3086f6 fca30679 fd70ad90
""".split()
)
CONTACT = re.compile(
    r"\S+@\S+\.\w+|https?://|www\.|(?:\+|\b00)\d[\d ()/-]{7,}\d|\b\d{3}[ -]\d{3}[ -]\d{4}\b|AKIA\w+|BEGIN \w+ KEY"
)


HELDOUT = Path(__file__).parents[1] / "benchmarks" / "data" / "generated_heldout.txt"


def unwanted(text):
    words = set(re.findall(r"[^\W\d_]+", text.casefold()))
    return sorted(w for w in words if hashlib.sha256(w.encode()).hexdigest()[:8] in UNWANTED)


@pytest.mark.parametrize("source", [BUILTIN, MIXED, str(HELDOUT)])
def test_no_unwanted_word_and_no_address_ships(source):
    text = read_text(source).content
    assert unwanted(text) == []
    assert CONTACT.findall(text) == []


def test_no_paragraph_is_in_both():
    shipped, kept_out = (set(text.content.split("\n\n")) for text in (read_text(BUILTIN), read_text(str(HELDOUT))))
    assert {paragraph for paragraph in shipped & kept_out if len(paragraph) > 20} == set()


def test_the_list_finds_what_it_holds():
    assert unwanted("An Unshippable, word; unshippable_x") == ["unshippable"]
    for reach in ("write a.b@example.org", "https://example.org", "+49 30 1234567", "call 555-010-0199", "AKIA0123"):
        assert CONTACT.search(reach), reach
