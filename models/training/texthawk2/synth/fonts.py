"""Fonts by family and split. ``scripts/fonts.sh`` fetches them; whole families are held out for the test split."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from PIL import Image, ImageFont

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
FONT_FOLDER = Path(__file__).resolve().parents[4] / ".cache" / "fonts"
_KEPT_GLYPHS = 200_000


@dataclass(frozen=True)
class Face:
    """One font file; ``index`` chooses within a collection (.ttc)."""

    path: Path
    index: int = 0


Family = tuple[Face, ...]


@dataclass(frozen=True)
class FontSet:
    """Families (never empty tuples of faces) of the train and the held-out fonts, for each script."""

    latin: tuple[Family, ...]
    chinese: tuple[Family, ...]
    held_out_latin: tuple[Family, ...]
    held_out_chinese: tuple[Family, ...]

    def families(self, script: Literal["latin", "chinese"], split: Split) -> tuple[Family, ...]:
        """Families of a script for a split: the held-out ones for "test". Raises ``ValueError`` when there are none."""
        if split not in SPLITS:
            raise ValueError(f"split {split!r}: expected one of {SPLITS}")
        if script == "latin":
            found = self.held_out_latin if split == "test" else self.latin
        else:
            found = self.held_out_chinese if split == "test" else self.chinese
        if not found:
            raise ValueError(f"no {script} fonts for split {split!r} in this font set; run scripts/fonts.sh")
        return found


@dataclass(frozen=True)
class Listed:
    """A family as listed here: its files lie in ``packages/<package>/``."""

    name: str
    package: str
    files: tuple[str, ...]
    index: int = 0


def _styles(stem: str, styles: str, suffix: str = "ttf") -> tuple[str, ...]:
    return tuple(f"{stem}{style}.{suffix}" for style in styles.split())


_RIBBI = "-Regular -Bold -Italic -BoldItalic"
# Not in it are families drawn after a held-out one: Noto Sans and Droid (Open Sans), Karmilla (Karla).
LATIN = (
    Listed(
        "DejaVu Sans",
        "fonts-dejavu-extra",
        ("DejaVuSans-Oblique.ttf", "DejaVuSansCondensed.ttf", "DejaVuSansCondensed-Bold.ttf"),
    ),
    Listed("DejaVu Sans upright", "fonts-dejavu-core", ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf")),
    Listed("DejaVu Serif", "fonts-dejavu-core", ("DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf")),
    Listed("DejaVu Mono", "fonts-dejavu-core", ("DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf")),
    Listed("Liberation Sans", "fonts-liberation2", _styles("LiberationSans", _RIBBI)),
    Listed("Liberation Serif", "fonts-liberation2", _styles("LiberationSerif", _RIBBI)),
    Listed("Liberation Mono", "fonts-liberation2", _styles("LiberationMono", _RIBBI)),
    Listed("FreeSerif", "fonts-freefont-ttf", ("FreeSerif.ttf", "FreeSerifBold.ttf", "FreeSerifItalic.ttf")),
    Listed("FreeSans", "fonts-freefont-ttf", ("FreeSans.ttf", "FreeSansBold.ttf", "FreeSansOblique.ttf")),
    Listed("FreeMono", "fonts-freefont-ttf", ("FreeMono.ttf", "FreeMonoBold.ttf")),
    Listed(
        "Roboto", "fonts-roboto-unhinted", _styles("Roboto", "-Regular -Bold -Italic -BoldItalic -Light -Medium -Black")
    ),
    Listed("Roboto Condensed", "fonts-roboto-unhinted", _styles("RobotoCondensed", _RIBBI)),
    Listed("Roboto Slab", "fonts-roboto-slab", _styles("RobotoSlab", "-Regular -Bold -Light", "otf")),
    Listed("Lato", "fonts-lato", _styles("Lato", "-Regular -Bold -Italic -BoldItalic -Light -Black")),
    Listed("Caladea", "fonts-crosextra-caladea", _styles("Caladea", _RIBBI)),
    Listed("Linux Libertine", "fonts-linuxlibertine", _styles("LinLibertine_", "R RB RI", "otf")),
    Listed("Linux Biolinum", "fonts-linuxlibertine", _styles("LinBiolinum_", "R RB RI", "otf")),
    Listed("Comfortaa", "fonts-comfortaa", _styles("Comfortaa", "-Regular -Bold")),
    Listed("Hack", "fonts-hack", _styles("Hack", _RIBBI)),
    Listed("Inconsolata", "fonts-inconsolata", ("Inconsolata.otf",)),
    Listed("Cantarell", "fonts-cantarell", _styles("Cantarell", "-Regular -Bold -Light", "otf")),
    Listed("Quicksand", "fonts-quicksand", _styles("Quicksand", "-Regular -Bold -Medium")),
    Listed("PT Sans", "fonts-paratype", _styles("PT", "S55F S56F S75F N57F N77F")),
    Listed("PT Serif", "fonts-paratype", _styles("PT", "F55F F56F F75F")),
    Listed("PT Mono", "fonts-paratype", _styles("PT", "M55F M75F")),
    Listed(
        "Courier Prime",
        "fonts-courier-prime",
        ("Courier Prime.otf", "Courier Prime Bold.otf", "Courier Prime Italic.otf"),
    ),
    Listed("Cabin", "fonts-cabin", _styles("Cabin", _RIBBI, "otf")),
    Listed("Go", "fonts-go", _styles("Go", "-Regular -Bold -Italic")),
    Listed("Go Mono", "fonts-go", ("Go-Mono.ttf", "Go-Mono-Bold.ttf")),
    Listed("Vollkorn", "fonts-vollkorn", _styles("Vollkorn", _RIBBI)),
    Listed("Andika", "fonts-sil-andika", _styles("Andika", _RIBBI)),
    Listed("Breip", "fonts-breip", ("Breip.ttf",)),
    Listed("Dosis", "fonts-dosis", _styles("Dosis", "-Book -Medium -Bold", "otf")),
    Listed("Old Standard", "fonts-oldstandard", _styles("OldStandard", "-Regular -Bold -Italic")),
    Listed("B612", "fonts-b612", _styles("B612", _RIBBI, "otf")),
    Listed("Oxygen", "fonts-oxygen", ("Oxygen-Sans.ttf", "Oxygen-Sans-Bold.ttf")),
    Listed("Play", "fonts-play", _styles("Play", "-Regular -Bold")),
    Listed("Inter", "fonts-inter", _styles("Inter", "-Regular -Bold -Italic -Light -Black", "otf")),
    Listed("Manrope", "fonts-manrope", _styles("Manrope", "-Regular -Bold -Light")),
    Listed("Sora", "fonts-sora", _styles("Sora", "-Regular -Bold -Light", "otf")),
    Listed("Clear Sans", "fonts-clear-sans", _styles("ClearSans", "-Regular -Bold -Italic -Light")),
    Listed("Carlito", "fonts-crosextra-carlito", _styles("Carlito", _RIBBI)),
    Listed("Nimbus Sans Narrow", "fonts-urw-base35", _styles("NimbusSansNarrow", "-Regular -Bold", "otf")),
    Listed("C059", "fonts-urw-base35", _styles("C059", "-Roman -Bold -Italic", "otf")),
    Listed("P052", "fonts-urw-base35", _styles("P052", "-Roman -Bold -Italic", "otf")),
    Listed("URW Bookman", "fonts-urw-base35", _styles("URWBookman", "-Light -Demi -LightItalic", "otf")),
    Listed("URW Gothic", "fonts-urw-base35", _styles("URWGothic", "-Book -Demi", "otf")),
    Listed("Gentium Plus", "fonts-sil-gentiumplus", _styles("GentiumPlus", _RIBBI)),
    Listed("Charis SIL", "fonts-sil-charis", _styles("CharisSIL", _RIBBI)),
    Listed("Fanwood", "fonts-fanwood", _styles("Fanwood", "Text Text-Italic", "otf")),
    Listed("Goudy Bookletter", "fonts-goudybookletter", ("GoudyBookletter1911.otf",)),
    Listed("Prociono", "fonts-prociono", ("Prociono.otf",)),
    Listed("Cardo", "fonts-cardo", ("Cardo104s.ttf", "Cardob101.ttf", "Cardoi99.ttf")),
    Listed("Linden Hill", "fonts-lindenhill", ("LindenHill.otf", "LindenHill-Italic.otf")),
    Listed("Quattrocento", "fonts-quattrocento", ("Quattrocento-Regular.otf",)),
    Listed("Arapey", "fonts-arapey", ("Arapey-Regular.otf", "Arapey-Black.otf")),
    Listed("Accanthis", "fonts-adf-accanthis", _styles("AccanthisADFStd", _RIBBI, "otf")),
    Listed("Gillius", "fonts-adf-gillius", _styles("GilliusADF", "-Regular -Bold -Italic", "otf")),
    Listed("Gillius Condensed", "fonts-adf-gillius", _styles("GilliusADF", "-Cond -BoldCond", "otf")),
    Listed("Ikarius", "fonts-adf-ikarius", _styles("IkariusADFStd", _RIBBI, "otf")),
    Listed("Libris", "fonts-adf-libris", _styles("LibrisADFStd", _RIBBI, "otf")),
    Listed("Tribun", "fonts-adf-tribun", _styles("TribunADFStd", "-Regular -Bold -Cond -BoldCond", "otf")),
    Listed("Universalis", "fonts-adf-universalis", _styles("UniversalisADFStd", _RIBBI, "otf")),
    Listed("Universalis Condensed", "fonts-adf-universalis", _styles("UniversalisADFStd", "-Cond -BoldCond", "otf")),
    Listed("Averia Sans", "fonts-averia-sans-gwf", _styles("AveriaSansGWF", _RIBBI)),
    Listed("Averia Serif", "fonts-averia-serif-gwf", _styles("AveriaSerifGWF", "-Regular -Bold -Italic")),
    Listed("Fira Code", "fonts-firacode", _styles("FiraCode", "-Regular -Bold -Light")),
    Listed("Fantasque Sans Mono", "fonts-fantasque-sans", _styles("FantasqueSansMono", _RIBBI)),
    Listed("Monoid", "fonts-monoid", _styles("Monoid", "-Regular -Bold -Italic")),
    Listed("Mononoki", "fonts-mononoki", _styles("mononoki", "-Regular -Bold -Italic")),
    Listed("Monofur", "fonts-monofur", ("monof55.ttf", "monof56.ttf")),
    Listed("Hermit", "fonts-hermit", _styles("Hermit", "-medium -bold -light", "otf")),
    Listed("League Mono Condensed", "fonts-league-mono", _styles("LeagueMono", "-Condensed -CondensedBold", "otf")),
    Listed("Anonymous Pro", "fonts-anonymous-pro", ("Anonymous Pro.ttf", "Anonymous Pro B.ttf")),
    Listed("League Spartan", "fonts-league-spartan", _styles("LeagueSpartan", "-Regular -Bold -Light", "otf")),
    Listed("Jura", "fonts-jura", _styles("Jura", "-Regular -Bold -Medium", "otf")),
    Listed("Tuffy", "fonts-tuffy", ("Tuffy.ttf", "Tuffy_Bold.ttf", "Tuffy_Italic.ttf")),
    Listed("OpenDyslexic", "fonts-opendyslexic", _styles("OpenDyslexic", "-Regular -Bold -Italic", "otf")),
    Listed("Nanum Gothic", "fonts-nanum", ("NanumGothic.ttf", "NanumGothicBold.ttf")),
    Listed("Nanum Myeongjo", "fonts-nanum", ("NanumMyeongjo.ttf", "NanumMyeongjoBold.ttf")),
    Listed("GFS Didot", "fonts-gfs-didot", ("GFSDidot.otf", "GFSDidotBold.otf", "GFSDidotItalic.otf")),
    Listed("GFS Neohellenic", "fonts-gfs-neohellenic", ("GFSNeohellenic.otf", "GFSNeohellenicBold.otf")),
    Listed("Yrsa", "fonts-yrsa-rasa", _styles("Yrsa", "-Regular -Bold -Italic")),
    Listed("Compagnon", "fonts-compagnon", _styles("Compagnon", "-Roman -Bold", "otf")),
    Listed("Century Catalogue", "fonts-century-catalogue", ("Century-Catalogue.ttf",)),
    Listed("Garuda", "fonts-tlwg-garuda-ttf", ("Garuda.ttf", "Garuda-Bold.ttf", "Garuda-Oblique.ttf")),
    Listed("Kinnari", "fonts-tlwg-kinnari-ttf", ("Kinnari.ttf", "Kinnari-Bold.ttf", "Kinnari-Italic.ttf")),
    Listed("Purisa", "fonts-tlwg-purisa-ttf", ("Purisa.ttf", "Purisa-Bold.ttf")),
    Listed("Sawasdee", "fonts-tlwg-sawasdee-ttf", ("Sawasdee.ttf", "Sawasdee-Bold.ttf")),
    Listed("Umpush", "fonts-tlwg-umpush-ttf", ("Umpush.ttf", "Umpush-Bold.ttf", "Umpush-Light.ttf")),
    Listed("Klee One", "fonts-klee", _styles("KleeOne", "-Regular -SemiBold")),
)
HELD_OUT_LATIN = (
    Listed("Open Sans", "fonts-open-sans", _styles("OpenSans", _RIBBI)),
    Listed("EB Garamond", "fonts-ebgaramond", _styles("EBGaramond12", "-Regular -Bold -Italic", "otf")),
    Listed("JetBrains Mono", "fonts-jetbrains-mono", _styles("JetBrainsMono", _RIBBI)),
    Listed("Comic Neue", "fonts-comic-neue", _styles("ComicNeue", _RIBBI, "otf")),
    Listed("Yanone Kaffeesatz", "fonts-yanone-kaffeesatz", _styles("YanoneKaffeesatz", "-Regular -Bold", "otf")),
    Listed("Karla", "fonts-karla", _styles("Karla", _RIBBI, "otf")),
)
CHINESE = (
    Listed("Noto Sans CJK SC", "fonts-noto-cjk", _styles("NotoSansCJK", "-Regular -Bold", "ttc"), 2),
    Listed("Noto Serif CJK SC", "fonts-noto-cjk", _styles("NotoSerifCJK", "-Regular -Bold", "ttc"), 2),
    Listed("WenQuanYi Zen Hei", "fonts-wqy-zenhei", ("wqy-zenhei.ttc",)),
    Listed("AR PL UMing CN", "fonts-arphic-uming", ("uming.ttc",)),
    Listed("AR PL UKai CN", "fonts-arphic-ukai", ("ukai.ttc",)),
    Listed("Smiley Sans", "fonts-smiley-sans", ("SmileySans-Oblique.ttf",)),
    Listed("BabelStone Han", "fonts-babelstone-han", ("BabelStoneHan.ttf",)),
)
HELD_OUT_CHINESE = (
    Listed("WenQuanYi Micro Hei", "fonts-wqy-microhei", ("wqy-microhei.ttc",)),
    Listed("LXGW WenKai", "fonts-lxgw-wenkai", _styles("LXGWWenKai", "-Regular -Bold -Light")),
)


@lru_cache(maxsize=1)
def default_fonts() -> FontSet:
    """The project's fonts in ``.cache/fonts``. Raises ``ValueError`` naming what is missing and how to get it."""
    return load_fonts(FONT_FOLDER)


def load_fonts(folder: Path) -> FontSet:
    """The listed families below ``folder``. Raises ``ValueError`` naming what is missing and how to get it."""
    listed = (*LATIN, *HELD_OUT_LATIN, *CHINESE, *HELD_OUT_CHINESE)
    missing = sorted({f"{f.package}/{name}" for f in listed for name in f.files if not _path(folder, f, name).exists()})
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(f"{', '.join(missing[:3])}{more} missing in {folder}: run scripts/fonts.sh")
    return FontSet(
        *(
            tuple(tuple(Face(_path(folder, family, name), family.index) for name in family.files) for family in group)
            for group in (LATIN, CHINESE, HELD_OUT_LATIN, HELD_OUT_CHINESE)
        )
    )


def _path(folder: Path, family: Listed, name: str) -> Path:
    return folder / "packages" / family.package / name


@lru_cache(maxsize=2048)
def font(face: Face, size: int) -> ImageFont.FreeTypeFont:
    """The face at ``size`` pixels per em, with the basic layout, so that every build of Pillow draws the same."""
    return ImageFont.truetype(face.path, size, index=face.index, layout_engine=ImageFont.Layout.BASIC)


@dataclass(frozen=True)
class Glyph:
    """Ink coverage (L) of a text whose upper left corner is at (left, top) from the pen on the baseline."""

    ink: Image.Image
    left: int
    top: int
    advance: float

    @property
    def right(self) -> int:
        """First column right of the ink."""
        return self.left + self.ink.width

    @property
    def bottom(self) -> int:
        """First row below the ink."""
        return self.top + self.ink.height


@lru_cache(maxsize=_KEPT_GLYPHS)
def glyph(face: Face, size: int, char: str) -> Glyph:
    """One character, kept for the next time."""
    return draw_text(face, size, char)


def draw_text(face: Face, size: int, text: str) -> Glyph:
    """``text`` on one line, as ink."""
    drawn = font(face, size)
    mask, (left, top) = drawn.getmask2(text, mode="L", anchor="ls")
    ink = Image.frombytes("L", mask.size, bytes(mask)) if 0 not in mask.size else Image.new("L", (1, 1))
    return Glyph(ink, left, top, drawn.getlength(text))
