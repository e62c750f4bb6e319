"""Colors of COCO's panoptic classes, from panoptic_coco_categories.json of cocodataset/panopticapi."""

from ..data.categories import COCO_PANOPTIC

# "category id, color" in the order of that file.
_TABLE = """
1 dc143c, 2 770b20, 3 00008e, 4 0000e6, 5 6a00e4, 6 003c64, 7 005064, 8 000046, 9 0000c0, 10 faaa1e, 11 64aa1e,
13 dcdc00, 14 af74af, 15 fa001e, 16 a52a2a, 17 ff4dff, 18 00e2fc, 19 b6b6ff, 20 005200, 21 78a69d, 22 6e4c00,
23 ae39ff, 24 c76400, 25 480076, 27 ffb3f0, 28 007d5c, 31 d10097, 32 bcd0b6, 33 00dcb0, 34 ff63a4, 35 5c0049,
36 8581ff, 37 4eb4ff, 38 00e400, 39 aefff3, 40 2d59ff, 41 868667, 42 9194ae, 43 ffd0ba, 44 c5e2ff, 46 ab8601,
47 6d3f36, 48 cf8aff, 49 97005f, 50 09503d, 51 546933, 52 4a4169, 53 a6c466, 54 d0c3d2, 55 ff6d41, 56 008f95,
57 b300c2, 58 d1636a, 59 057900, 60 e3ffcd, 61 93bad0, 62 994501, 63 035fa1, 64 a3ff00, 65 7700aa, 67 00b6c7,
70 00a578, 72 b78258, 73 5f2000, 74 827287, 75 6e8185, 76 a64a76, 77 db8eb9, 78 4fd272, 79 b25a3e, 80 41460f,
81 7fa773, 82 3b696a, 84 8e6c2d, 85 c4ac00, 86 5f3650, 87 804cff, 88 c93901, 89 f6007a, 90 bfa2d0, 92 ffff80,
93 93d3cb, 95 966464, 100 a8abac, 107 9270c6, 109 d2aa64, 112 5c8859, 118 da58b8, 119 f18100, 122 d911ff,
125 7c4ab5, 128 464646, 130 ffe4ff, 133 9ad000, 138 c1005c, 141 4c5b71, 144 ffb4c3, 145 6a9ab0, 147 e6968c,
148 3c8fff, 149 804080, 151 5c5237, 154 fed47c, 155 494dae, 156 ffa062, 159 ffffff, 161 68546d, 166 a9a483,
168 e1c7ff, 171 89364a, 175 879edf, 176 07f6e7, 177 6bffc8, 178 3a2995, 180 b7798e, 181 ff4961, 184 6b8e23,
185 be9999, 186 928b8d, 187 4682b4, 188 86c79c, 189 d1e28c, 190 60246c, 191 606060, 192 40aa40, 193 98fb98,
194 d0e5e4, 195 cebaab, 196 98a140, 197 747000, 198 00728f, 199 66669c, 200 fa8dff
"""


def _parse_table() -> dict[str, tuple[int, int, int]]:
    colors = {}
    for entry in _TABLE.replace("\n", " ").split(","):
        category_id, color = entry.split()
        red, green, blue = bytes.fromhex(color)
        colors[COCO_PANOPTIC.names[COCO_PANOPTIC.label_id(int(category_id))]] = (red, green, blue)
    return colors


COCO_COLORS = _parse_table()
"""Red, green and blue, 0 to 255, of each class by its name."""
