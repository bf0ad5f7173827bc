"""What the audit's HTML pages share: one file each, without scripts, that can be mailed, printed and kept."""

from __future__ import annotations

import html
import re

from oxherd import __version__

_STYLE = """
:root{color-scheme:light dark;--paper:light-dark(#f5f4f0,#131311);--card:light-dark(#fffefb,#1b1b19);
--ink:light-dark(#1e1d1a,#ece9e2);--soft:light-dark(#65625a,#a5a197);--line:light-dark(#e2dfd7,#30302c);
--raised:light-dark(#efede7,#262623);--good:light-dark(#226a49,#63c394);--bad:light-dark(#a93325,#f08a7a);
--warm:light-dark(#855408,#e3b35c);--calm:light-dark(#2f6aa8,#7fb2e8);--good-bg:light-dark(#e4f1ea,#1a2f26);
--bad-bg:light-dark(#fbe9e5,#3a201c);--warm-bg:light-dark(#faf0d9,#33291a);--calm-bg:light-dark(#e5eef8,#1b2938)}
*,::before,::after{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.55 Inter,system-ui,-apple-system,"Segoe UI",Roboto,
sans-serif;font-variant-numeric:tabular-nums;overflow-wrap:anywhere;-webkit-text-size-adjust:100%}
main{max-width:60rem;margin:0 auto;padding:40px 24px 56px}
h1,h2,h3,p,dl,dd,ul{margin:0;padding:0}ul{list-style:none}
h1{font-size:28px;line-height:1.2;letter-spacing:-.02em;font-weight:680}
h2{font-size:17px;font-weight:650;letter-spacing:-.01em;margin:36px 0 12px}
h3{font-size:15px;font-weight:620;line-height:1.4}
code{font-family:ui-monospace,"SF Mono","Cascadia Code","DejaVu Sans Mono",monospace;font-size:.88em;
background:var(--raised);padding:.1em .35em;border-radius:4px}
.soft{color:var(--soft)}.over{color:var(--soft);font-size:13px;font-weight:600;letter-spacing:.02em}
header{display:flex;gap:28px;align-items:center;justify-content:space-between}
header p{margin-top:10px;max-width:42rem}
.ring{flex:none;width:132px;height:132px}.ring circle{fill:none;stroke-width:9;stroke:var(--line)}
.ring .arc{stroke:var(--tone);stroke-linecap:round;transform:rotate(-90deg);transform-origin:50% 50%}
.ring text{fill:var(--ink);text-anchor:middle;font-weight:680;font-size:36px;letter-spacing:-.02em}
.ring .of{fill:var(--soft);font-size:12.5px;font-weight:450;letter-spacing:0}
.figures{display:flex;flex-wrap:wrap;gap:1px;margin:26px 0 0;background:var(--line);border:1px solid var(--line);
border-radius:10px;overflow:hidden}
.figures div{flex:1 1 110px;background:var(--card);padding:11px 16px}
.figures dt{color:var(--soft);font-size:13px}.figures dd{font-size:24px;font-weight:640;line-height:1.3}
.list{background:var(--card);border:1px solid var(--line);border-radius:10px}
.list>li{padding:15px 18px;break-inside:avoid}.list>li+li{border-top:1px solid var(--line)}
.control{display:grid;grid-template-columns:104px minmax(0,1fr) 88px;gap:0 16px;align-items:start}
.control p{margin-top:3px;color:var(--soft)}.control .todo,.todo{color:var(--ink);margin-top:7px}
.todo b,dl.facts dt{font-weight:550;color:var(--soft)}
.bar{text-align:right;font-weight:640}.bar span,.bar i{display:block;height:5px;border-radius:3px}
.bar span{background:var(--line);margin-top:5px}.bar i{background:var(--tone)}
.chip{display:inline-block;padding:2px 10px;border-radius:99px;font-size:13px;font-weight:600;white-space:nowrap;
color:var(--tone);background:var(--tone-bg)}
.good{--tone:var(--good);--tone-bg:var(--good-bg)}.bad{--tone:var(--bad);--tone-bg:var(--bad-bg)}
.warm{--tone:var(--warm);--tone-bg:var(--warm-bg)}.calm{--tone:var(--calm);--tone-bg:var(--calm-bg)}
.plain{--tone:var(--soft);--tone-bg:var(--raised)}.is-bad{color:var(--bad)}
.top{display:flex;flex-wrap:wrap;gap:6px 12px;align-items:center}.top .chip:last-child{margin-left:auto}
dl.facts{display:grid;grid-template-columns:96px minmax(0,1fr);gap:4px 16px;margin-top:10px}
details{margin-top:4px}summary{cursor:pointer;color:var(--soft)}details li{margin-top:3px}
:focus-visible{outline:2px solid var(--calm);outline-offset:2px;border-radius:4px}
footer{margin-top:40px;padding-top:16px;border-top:1px solid var(--line);color:var(--soft);font-size:13.5px}
@media(max-width:620px){main{padding:24px 16px 40px}header{flex-direction:column;align-items:flex-start;gap:18px}
h1{font-size:23px}.ring{width:108px;height:108px}.list>li{padding:14px}
.control{grid-template-columns:minmax(0,1fr) 72px;gap:8px 12px}.control>div:nth-child(2){grid-column:1/-1;grid-row:2}
.control .bar{grid-row:1;grid-column:2}dl.facts{grid-template-columns:minmax(0,1fr);gap:0}dl.facts dd{margin-bottom:7px}
.figures div{flex-basis:40%}}
@media print{:root{color-scheme:light}body{background:#fff;font-size:10.5pt}main{padding:0;max-width:none}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}h2{break-after:avoid}@page{margin:16mm}}
"""


def document(title: str, body: str, about: str) -> str:
    """A whole page.

    Parameters:
        title: for the browser, as text.
        body: what is in `main`, as HTML.
        about: how it was made, for the foot, as text.
    """
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
        f"<main>{body}<footer>{words(about)} Oxherd {__version__}.</footer></main></html>\n"
    )


def words(text: str) -> str:
    """Text as HTML; what stands between backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def chip(tone: str, text: str) -> str:
    """A word in its colour: good, bad, warm, calm or plain."""
    return f'<span class="chip {tone}">{html.escape(text)}</span>'


def figures(pairs: list[tuple[str, int, bool]]) -> str:
    """A row of numbers, each with its name and whether it is bad where it is not zero."""
    shown = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd{' class=is-bad' if bad and number else ''}>{number:,}</dd></div>"
        for name, number, bad in pairs
    )
    return f'<dl class="figures">{shown}</dl>'


def ring(score: int | None) -> str:
    """A score of 100 as a ring."""
    tone = "plain" if score is None else tone_of(score)
    length = 2 * 3.14159 * 54
    arc = "" if not score else (
        f'<circle class="arc" cx="66" cy="66" r="54" stroke-dasharray="{length * score / 100:.1f} {length:.1f}"/>'
    )  # fmt: skip
    shown, spoken = ("?", "The score is not known") if score is None else (str(score), f"Score: {score} of 100")
    return (
        f'<svg class="ring {tone}" viewBox="0 0 132 132" role="img" aria-label="{spoken}">'
        f'<circle cx="66" cy="66" r="54"/>{arc}<text x="66" y="74">{shown}</text>'
        f'<text class="of" x="66" y="93">of 100</text></svg>'
    )


def tone_of(score: int) -> str:
    """The colour of a score."""
    return "good" if score >= 90 else "warm" if score >= 50 else "bad"
