//! The grid: a row for each front end, a column for each cache mode, first those of 2009. Each cell opens its dialog.

use blk_core::storage::CacheMode;
use host_std::proof::Front;
use maud::{Markup, html};

use super::cell::{self, Finding, finding};
use crate::table::render::thousands;
use crate::table::{Cell, Table};

/// Every cell, with the name by which it is opened.
pub(super) fn cells(table: &Table) -> impl Iterator<Item = (String, &Cell)> {
    let then = table.history.iter().map(|cell| (id("then", cell), cell));
    then.chain(table.cells.iter().map(|cell| (id("now", cell), cell)))
}

pub(super) fn intro(table: &Table) -> Markup {
    html! {
        p {
            @if !table.history.is_empty() {
                "In 2009 the leading emulator's front ends were asked the same question. The explorer is shown two of them as they "
                "were, and all of today. "
            }
            "Open a cell: what loses data opens a shortest counterexample, what is safe one of the histories that were explored."
        }
    }
}

pub(super) fn grid(table: &Table) -> Markup {
    let modes: Vec<_> = CacheMode::ALL.into_iter().filter(|mode| has_mode(table, *mode)).collect();
    html! {
        table.grid role="table" aria-labelledby="grid" style=(format!("--modes:{}", modes.len())) {
            thead role="rowgroup" {
                tr role="row" {
                    th scope="col" role="columnheader" { "front end" }
                    @for &mode in &modes {
                        th scope="col" role="columnheader" { (mode.name()) small { (cell::meaning(mode)) } }
                    }
                }
            }
            @if !table.history.is_empty() { (era("then", "2009", &table.history, &modes)) }
            (era("now", "Now", &table.cells, &modes))
        }
    }
}

/// What the marks and figures mean.
pub(super) fn legend(table: &Table) -> Markup {
    let figures = table.cells.iter().any(|cell| cell.run.is_some());
    html! {
        div.legend {
            p {
                (key(Finding::Safe, "keeps every promise"))
                (key(Finding::Lost, "loses data"))
                (key(Finding::Declared, "loses data, as the mode's name says"))
            }
            @if figures {
                p {
                    "Syncs: fdatasync calls, and writes made with O_DSYNC or RWF_DSYNC, for the same 48 writes and 6 flushes of a guest. "
                    "Flushes: flushes and FUA writes that the kernel then sent to a loop device"
                    @if table.cells.iter().all(|cell| cell.run.is_none_or(|run| run.kernel.is_none())) {
                        " (not seen: it needs root)"
                    }
                    "."
                }
            }
        }
    }
}

fn key(finding: Finding, text: &str) -> Markup {
    html! { span.key { span.mark.(finding.class()) { (finding.mark()) } " " (text) } " " }
}

fn era(name: &str, title: &str, cells: &[Cell], modes: &[CacheMode]) -> Markup {
    let fronts = Front::ALL.into_iter().filter(|front| cells.iter().any(|cell| cell.front == *front));
    html! {
        tbody.(name) role="rowgroup" {
            tr.era role="row" { th scope="rowgroup" role="rowheader" colspan=(modes.len() + 1) { (title) } }
            @for front in fronts {
                tr role="row" {
                    th scope="row" role="rowheader" { (front.name()) }
                    @for &mode in modes {
                        td role="cell" {
                            @match cells.iter().find(|cell| cell.front == front && cell.mode == mode) {
                                Some(cell) => (button(name, title, cell)),
                                None => span.none { span.mode { (mode.name()) } "not in 2009" },
                            }
                        }
                    }
                }
            }
        }
    }
}

fn button(era: &str, title: &str, cell: &Cell) -> Markup {
    let found = finding(cell);
    let figures = figures(cell);
    let label = format!(
        "{}, {}, {title}: {}. {}",
        cell.front.name(),
        cell.mode.name(),
        found.words(),
        figures.join(", ")
    );
    html! {
        button.(found.class()) type="button" popovertarget=(id(era, cell)) aria-label=(label) {
            span.mode { (cell.mode.name()) }
            span.finding { span.mark { (found.mark()) } " " (found.words()) }
            @for figure in &figures { span.figure { (figure) } }
        }
    }
}

fn figures(cell: &Cell) -> Vec<String> {
    let states = cell.proof.as_ref().map(|proof| {
        let found = if proof.safe { "" } else { "found after " };
        format!("{found}{} states", thousands(proof.states))
    });
    let reached = cell.run.map(|run| {
        let syncs = run.host.fdatasyncs + run.host.dsync_writes;
        let kernel = run.kernel.map(|counts| format!(", {} flushes", counts.flushes + counts.fua_writes));
        format!("{syncs} syncs{}", kernel.unwrap_or_default())
    });
    states.into_iter().chain(reached).collect()
}

fn id(era: &str, cell: &Cell) -> String {
    format!("{era}-{}-{}", cell.front.name().to_lowercase().replace(' ', "-"), cell.mode.name())
}

fn has_mode(table: &Table, mode: CacheMode) -> bool {
    table.cells.iter().chain(&table.history).any(|cell| cell.mode == mode)
}
