"""Colors of the figures, and the style sheet of the page.

Figures are drawn in the colors of the light scheme. In the page each color is a
CSS variable, which the dark scheme redefines. The series colors are those of
Okabe and Ito, which color-blind readers can distinguish, darkened where they
are too pale for lines on white. No information is given by color alone.
"""

__all__ = [
  'INK',
  'LINE',
  'MUTED',
  'PALETTE',
  'SERIES',
  'css_color',
  'css_variables',
  'line_style',
  'style_sheet',
]

# name -> (light, dark)
PALETTE = {
  'page': ('#ffffff', '#11161c'),
  'card': ('#f5f7f9', '#1a2129'),
  'ink': ('#1b2127', '#e7ebef'),
  'muted': ('#56616c', '#a3aeb9'),
  'line': ('#dde2e7', '#323b45'),
  'series0': ('#0072b2', '#58b1ea'),
  'series1': ('#d55e00', '#ff9149'),
  'series2': ('#008f68', '#35c99d'),
  'series3': ('#b85c94', '#e59cc8'),
  'series4': ('#9a7400', '#e5b53a'),
  'series5': ('#5b6bc0', '#a3b0ff'),
}
INK, MUTED, LINE = (PALETTE[name][0] for name in ('ink', 'muted', 'line'))
SERIES = [light for name, (light, _) in PALETTE.items() if 'series' in name]
DASHES = ('-', (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.5, 1.5)))


def line_style(number: int) -> tuple[str, object]:
  """Returns color and dashes of a line; those of numbers 0..23 are distinct."""
  color = SERIES[number % len(SERIES)]
  dashes = DASHES[(number + number // len(SERIES)) % len(DASHES)]
  return color, dashes


def css_color(number: int) -> str:
  """Returns the CSS color of a line."""
  return f'var(--series{number % len(SERIES)})'


def css_variables(scheme: int) -> str:
  """Returns the colors as CSS; `scheme` is 0 for light, 1 for dark."""
  return ''.join(f'--{name}:{pair[scheme]};' for name, pair in PALETTE.items())


SHEET = """
*,*::before,*::after{box-sizing:border-box}
html{color-scheme:light dark;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);
 font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",
 "DejaVu Sans",sans-serif;overflow-wrap:break-word}
code,h1,h3,figcaption,summary{overflow-wrap:anywhere}
main,header{max-width:70rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:2.2rem}
td,tbody th{overflow-wrap:anywhere}
.kicker{margin:0;color:var(--muted);font-size:.86rem}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .3rem;letter-spacing:-.01em}
h2{font-size:1.3rem;line-height:1.25;margin:3rem 0 .4rem;padding-top:.9rem;
 border-top:1px solid var(--line)}
h3{font-size:1.02rem;margin:1.5rem 0 .4rem}
p,ul{max-width:46rem;margin:.5rem 0}
a{color:var(--series0)}
code,kbd{font:.86em/1.4 ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",
 monospace}
pre{margin:.4rem 0;padding:.6rem .8rem;background:var(--card);border-radius:6px;
 white-space:pre-wrap}
nav{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;margin:1rem 0 0;
 font-size:.92rem}
.muted,figcaption,caption,small{color:var(--muted)}
.cards{display:grid;gap:1rem;margin:1.2rem 0;
 grid-template-columns:repeat(auto-fit,minmax(min(100%,25rem),1fr))}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;
 padding:1rem 1.2rem;border-left:5px solid var(--accent,var(--line))}
.card h3{margin:0;font-size:1rem}
.card p{margin:.35rem 0 0;font-size:.94rem}
.headline{font-size:2.1rem!important;line-height:1.15;font-weight:650;
 letter-spacing:-.02em;font-variant-numeric:tabular-nums}
.fine{font-size:.84rem!important;color:var(--muted)}
.tag{display:inline-block;padding:0 .5em;border:1px solid currentColor;
 border-radius:1em;font-size:.82em;line-height:1.5;white-space:nowrap}
.tag.transductive,.tag.bad{color:var(--series1)}
.tag.inductive,.tag.good{color:var(--series2)}
.panels{display:grid;gap:1.2rem 2rem;align-items:start;margin:1rem 0;
 grid-template-columns:repeat(auto-fit,minmax(min(100%,25rem),1fr))}
section{overflow-x:auto}
figure{margin:0;min-width:0;break-inside:avoid}
figure.plot{max-width:36rem}
figcaption{font-size:.88rem;line-height:1.45;max-width:44rem;margin-top:.3rem}
figure svg{display:block;width:100%;height:auto}
svg *{stroke-linejoin:round;stroke-linecap:butt}
svg text{font-family:inherit!important}
table{border-collapse:collapse;margin:.9rem 0;font-size:.92rem;
 font-variant-numeric:tabular-nums;max-width:100%}
caption{text-align:left;font-size:.88rem;padding-bottom:.4rem;caption-side:top}
th,td{padding:.32rem .7rem;text-align:left;vertical-align:baseline;
 border-bottom:1px solid var(--line)}
thead th{color:var(--muted);font-weight:500;font-size:.86rem;line-height:1.3;
 vertical-align:bottom}
tbody th{font-weight:500}
td.n,th.n{text-align:right}
td.n{white-space:nowrap}
tbody :is(th,td).n{overflow-wrap:normal}
table.heat td{text-align:center;padding:.35rem .45rem;line-height:1.3;
 border:2px solid var(--page);border-radius:6px;white-space:normal;
 background:color-mix(in oklab,var(--series0) calc(var(--heat)*1%),var(--page));
 print-color-adjust:exact;-webkit-print-color-adjust:exact}
table.heat th{border:0;padding:.2rem .5rem .2rem 0}
table.heat thead th{text-align:center}
table.heat td b{font-weight:600;white-space:nowrap}
table.heat td small{display:block;color:inherit;opacity:.86;font-size:.78rem}
table.heat td.base{outline:2px solid var(--ink);outline-offset:-3px}
table.heat th small{display:block;font-weight:400}
.note{border-left:3px solid var(--line);padding:.1rem 0 .1rem .8rem;
 color:var(--muted);font-size:.93rem;max-width:52rem}
.note code{color:var(--ink)}
details{margin:.8rem 0;border:1px solid var(--line);border-radius:8px;
 padding:.5rem .9rem}
summary{cursor:pointer}
.episodes{display:grid;gap:1.4rem 2rem;margin:1rem 0;
 grid-template-columns:repeat(auto-fit,minmax(min(100%,30rem),1fr))}
.episode{background:var(--card);border:1px solid var(--line);border-radius:10px;
 padding:.8rem 1rem}
.row{display:grid;grid-template-columns:1.4rem minmax(0,auto) minmax(0,1fr);
 gap:.15rem .7rem;padding:.45rem 0;border-top:1px solid var(--line);
 break-inside:avoid}
.row>b{font-size:1.05rem;line-height:1.3}
.row>.name{grid-column:2/4;font-size:.86rem;color:var(--muted);
 align-self:center}
.row>.shots{grid-column:2;grid-row:2;padding-right:.7rem;max-width:9.5rem;
 border-right:2px solid var(--line)}
.row>.queries{grid-column:3;grid-row:2}
.tiles{display:flex;flex-wrap:wrap;gap:.25rem .3rem;align-content:start}
.faces :is(th,td){vertical-align:middle}
.class{display:flex;gap:.6rem;align-items:center}
.class .tile{flex:none}
.tile{width:2.5rem;font-size:.74rem;line-height:1.35;text-align:center}
.tile i{display:block;width:2.5rem;height:2.5rem;border-radius:3px;
 background-image:var(--sprite);background-size:var(--size);
 border:2px solid transparent;background-origin:border-box;
 print-color-adjust:exact;-webkit-print-color-adjust:exact}
.tile.correct i{border-color:var(--series0)}
.tile.wrong i{border:2px dashed var(--series1)}
.tile.correct{color:var(--series0)}
.tile.wrong{color:var(--series1);font-weight:650}
footer{max-width:70rem;margin:3rem auto 2rem;padding:1rem 1.25rem 0;
 font-size:.86rem;color:var(--muted)}
@media (max-width:50rem){
 h1{font-size:1.5rem}
 th,td{padding:.3rem .3rem}
 td.n{white-space:normal}
 table.heat{font-size:.84rem}
 table.heat td{padding:.3rem .15rem}
 table.heat td small{font-size:.68rem}
 table.stack thead{display:none}
 table.stack,table.stack tbody{display:block}
 table.stack caption{display:block}
 table.stack tr{display:block;padding:.5rem 0;
  border-bottom:1px solid var(--line)}
 table.stack th,table.stack td{display:flex;justify-content:space-between;
  gap:1rem;padding:.08rem 0;border:0;text-align:right;white-space:normal}
 table.stack th[scope=row]{font-weight:650}
 table.stack [data-label]::before{content:attr(data-label);color:var(--muted);
  font-weight:400;text-align:left;flex:none;max-width:60%}
}
@media print{
 body{font-size:10.5pt;background:none}
 nav{display:none}
 h2{break-after:avoid}
 .card,tr{break-inside:avoid}
 details::details-content{content-visibility:visible;display:block;height:auto}
 main,header,footer{max-width:none;padding-left:0;padding-right:0}
}
"""


def style_sheet() -> str:
  """Returns the whole style sheet; print uses the light scheme."""
  dark = '@media screen and (prefers-color-scheme:dark)'
  return (
    f':root{{{css_variables(0)}}}{dark}{{:root{{{css_variables(1)}}}}}{SHEET}'
  )
