//! The page: what it all comes to, the grid, the limits, the speed.

use maud::{Markup, PreEscaped, html};

use super::speed::Bench;
use super::{cell, file, grid, limits, speed};
use crate::table::render::thousands;
use crate::table::{Cell, Expected, Table};

const STYLE: &str = include_str!("style.css");

/// Nothing is fetched, and no script runs, whatever the page holds.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'";

pub(super) fn page(table: &Table, bench: Option<&Bench>) -> Markup {
    html! {
        (PreEscaped(file::BEGIN))
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "What survives a power cut: blk-host report" }
                // An icon of its own, so that the browser asks for none.
                link rel="icon" href="data:,";
                style { (PreEscaped(STYLE)) }
            }
            body {
                header.top { (summary(table)) }
                main {
                    section aria-labelledby="grid" {
                        h2 #grid { "Then and now" }
                        (grid::intro(table))
                        (grid::grid(table))
                        (grid::legend(table))
                    }
                    section.limits aria-labelledby="limits" {
                        h2 #limits { "What this proves, and what it does not" }
                        div.columns {
                            (points("Explored", "explored", &limits::explored()))
                            (points("Not explored", "not", &limits::not_explored()))
                        }
                    }
                    section aria-labelledby="speed" {
                        h2 #speed { "Speed beside QEMU's storage daemon" }
                        (speed::section(bench))
                    }
                }
                footer {
                    p {
                        "Made by blk-host " (env!("CARGO_PKG_VERSION")) " report. This file needs no network and runs no script."
                    }
                }
                @for (id, cell) in grid::cells(table) { (cell::dialog(&id, cell, table.length)) }
            }
        }
    }
}

fn summary(table: &Table) -> Markup {
    let proofs = || table.cells.iter().chain(&table.history).filter_map(|cell| cell.proof.as_ref());
    let sum = |value: fn(&crate::table::Proof) -> u64| thousands(proofs().map(value).sum());
    let (class, verdict) = match table.as_it_must_be {
        Some(true) => ("safe", "Every cell is as it must be."),
        Some(false) => ("lost", "A cell is not as it must be."),
        None if table.stopped => ("declared", "Stopped before all was proven."),
        None => ("declared", "Not all was proven."),
    };
    html! {
        p.kicker { "blk-host integrity report" }
        h1 { "What survives a power cut" }
        p.lead {
            "A guest is told that its write is stable. Then power is cut. Is the data there? Asked of every front end in every "
            "cache mode, of every small program, at every moment."
        }
        p.verdict.(class) { (verdict) }
        dl.tiles {
            (tile("safe", &count(&table.cells, |cell| is_safe(cell) == Some(true)), "combinations of today that keep every promise"))
            (tile("declared", &count(&table.cells, is_declared), "lose data, as the mode's name “unsafe” says"))
            @if !table.history.is_empty() {
                (tile("lost in 2009", &count(&table.history, |cell| is_safe(cell) == Some(false)), "front ends and modes of 2009 that lose data"))
            }
            (tile("states", &sum(|proof| proof.states), "explored, each with a power cut"))
            (tile("programs", &sum(|proof| proof.programs), &format!("of up to {} steps", table.length)))
        }
    }
}

fn tile(name: &str, value: &str, text: &str) -> Markup {
    html! { div { dt { (name) } dd { strong { (value) } span { (text) } } } }
}

fn count(cells: &[Cell], which: fn(&Cell) -> bool) -> String {
    format!("{} of {}", cells.iter().filter(|cell| which(cell)).count(), cells.len())
}

fn is_safe(cell: &Cell) -> Option<bool> {
    cell.proof.as_ref().map(|proof| proof.safe)
}

fn is_declared(cell: &Cell) -> bool {
    cell.expected == Expected::DeclaredUnsafe && is_safe(cell) == Some(false)
}

fn points(title: &str, class: &str, points: &[limits::Point]) -> Markup {
    html! {
        div {
            h3 { (title) }
            ul.(class) {
                @for point in points {
                    li { strong { (point.title) "." } " " (point.text) }
                }
            }
        }
    }
}
