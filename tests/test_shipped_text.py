"""What ships as calibration text was read: none of it is hateful, sexual or violent, or says how to reach anybody.

The words are kept as the first 8 hex digits of their sha256, so that this file can be read by everybody. A list cannot
stand in for reading; it holds what reading found, and what a resampled text would bring back first.
"""

import hashlib
import re

from nxdi_svd_plugin.texts import BUILTIN, read_text

UNWANTED = set(
    """
0033728f 003394ba 00d1f172 0405c248 045e7a2e 0508a634 0631a609 0632813d 064fa6ad 08a841e9 098593a0 0a6b4744 0c13b4d7
0dcc4d33 11cf8376 11f4eb42 120f6e5b 127c6aef 13a465fc 13a5e8d6 158869a9 16ea09fc 183936b0 1afc813c 1d3f1bf3 1d975dda
1e02eec4 21b5d624 21ff590c 26033e08 268651b3 278f2830 27a45e0e 27add1fb 2a6937d7 2c1d8af3 2d66da9f 2f34b7a4 304bf48b
31506a84 36f4662d 38012c26 38159147 39107659 39c7ad80 3a4fcd94 3b1e0d7c 3c3bd763 3ef0b158 4090e2b7 412d4043 42c75396
4355ccc2 4426e54c 460ed72c 4b18aefe 4db16eb9 5055fa00 5072f198 5304378d 533f8cc0 54454805 5468b428 57c49918 586acb3c
59a2418c 59cc3cb8 59d4432e 5a9d9dce 5b3ae48b 68da4167 698ea98f 6ac3c336 6c9d9f81 6eccae68 6ef9d9fd 6fcf32bf 701d6943
70fc4b74 73f80633 76f03622 77173ace 779e6186 7825e569 78a00d18 793739b9 7bc67115 7cfd9315 7e85c676 7e921de4 7f5a9ba1
84ef9e57 85a32e33 85fc17f7 863498df 867d7897 885f94e3 886d51e9 8b6f82db 8bedb0f8 8c5c0439 8ca2dcb0 8f5083e3 937d56e4
9557070a 983f164b 9849bf00 986c9900 98d44e13 9ae315a9 a0f6a358 a1c1a3b7 a3686065 a4c7815e a54e71f0 a60a5238 a6aadb3d
a6ee0e6b a76d588d a9f41dff aaf3aa11 ab080737 ab26f696 ac879035 affc8757 b43cbb46 b56b7866 b652ea88 b690cdbe b81d6dc2
b88a33fd ba6fb01a ba7463ed bb61ef40 bb87adf8 bd331fb1 bd778891 c22f315f c2c3b68b c3de533e c541221e c685c920 c8d92aa5
c91d7a20 cc020323 ce3fd181 d17ef521 d1bbb220 d208a0f7 d31f9b0c d5405925 d75a838d dcb85fcf dd32831e ddc919be e041c609
e11dc1da e1490e2a e1b73076 e3dc18bf e512a055 e66e9a76 e6836793 e84dde50 e99d5524 e9b64384 eafd5120 eb0afd90 eb75f071
eb9b0354 ebc98c1e ebec03d8 ebf1cce0 ecaedc5e ee6f01a9 eef3bd09 ef9ab3d7 eff26b18 f0c913ec f23f9e86 f2b5ed7f f4385182
f5778592 f59e28f8 f6952d6e f6a9dcb1 f8e36d2d f9d0d9b1 fa1597ae fa7418ee fa991a15 fb8e5dfa fc3086f6 fd70ad90
""".split()
)
CONTACT = re.compile(
    r"\S+@\S+\.\w+|https?://|www\.|(?:\+|\b00)\d[\d ()/-]{7,}\d|\b\d{3}[ -]\d{3}[ -]\d{4}\b|AKIA\w+|BEGIN \w+ KEY"
)


def unwanted(text):
    words = set(re.findall(r"[^\W\d_]+", text.casefold()))
    return sorted(w for w in words if hashlib.sha256(w.encode()).hexdigest()[:8] in UNWANTED)


def test_no_unwanted_word_and_no_address_ships():
    text = read_text(BUILTIN).content
    assert unwanted(text) == []
    assert CONTACT.findall(text) == []


def test_the_list_finds_what_it_holds():
    assert unwanted("An Unshippable, word; unshippable_x") == ["unshippable"]
    for reach in ("write a.b@example.org", "https://example.org", "+49 30 1234567", "call 555-010-0199", "AKIA0123"):
        assert CONTACT.search(reach), reach
