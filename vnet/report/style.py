"""The style sheet of the page: light and dark, wide and narrow, screen and paper."""

from __future__ import annotations

# Contrast of text is 4.5 or more on paper and tint, in light and in dark.
STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1c2128; --soft: #57606a; --paper: #fff; --line: #d5dae0; --tint: #f3f6f9; --link: #0b5cad; --mark: #3d8fc4;
}
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --soft: #9aa4ae; --paper: #14181d; --line: #353c45; --tint: #1d232a; --link: #7cb8f2; }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 86rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
}
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; overflow-wrap: anywhere; }
p { max-width: 52rem; margin: .5rem 0; overflow-wrap: anywhere; }
a { color: var(--link); }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.question { font-size: 1.05rem; color: var(--soft); margin-bottom: 1rem; }
.answer {
  font-size: 1.12rem; padding: .8rem 1.1rem; max-width: none; margin: 0;
  background: var(--tint); border-left: 4px solid var(--mark);
}
nav ol { columns: 16rem 3; padding-left: 1.4rem; margin: 1.2rem 0 0; }
nav li { padding: .15rem 0; }
.note, figcaption { color: var(--soft); font-size: .88rem; }
.scroll { overflow: auto; }
.tall { max-height: 32rem; }
.tall thead th { position: sticky; top: 0; background: var(--paper); }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .7rem .28rem 0; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
.wrapped td { white-space: normal; min-width: 18rem; }
th { font-weight: 600; }
thead th { color: var(--soft); }
tbody th { font-weight: 400; }
tr:target { background: var(--tint); outline: 2px solid var(--mark); outline-offset: -2px; }
th.number, td.number { text-align: right; padding: .28rem 0 .28rem .75rem; }
figure { margin: 1rem 0; min-width: 0; }
figure svg { width: 100%; height: auto; display: block; }
figure svg text { font-family: inherit !important; }
figure img { max-width: 100%; height: auto; display: block; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 0 2.5rem; }
pre { background: var(--tint); padding: .7rem 1rem; font-size: .86rem; margin: 0; }
@page { size: A4 landscape; margin: 12mm; }
@media print {
  :root { --ink: #000; --soft: #444; --paper: #fff; --line: #bbb; --tint: #f4f4f4; --link: #000; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  .scroll { overflow: visible; max-height: none; }
  .tall thead th { position: static; }
  table { font-size: 7pt; }
  /* words may wrap, numbers may not: a number that is broken is another number */
  th, td { white-space: normal; padding-right: .4rem; }
  th.number { padding-left: .4rem; }
  td.number { white-space: nowrap; padding-left: .4rem; }
  pre { white-space: pre-wrap; }
  .pair { grid-template-columns: 1fr 1fr 1fr; gap: 0 1.5rem; }
  figure, tr { break-inside: avoid; }
  thead { display: table-header-group; }
  h2, h3 { break-after: avoid; }
}
"""
