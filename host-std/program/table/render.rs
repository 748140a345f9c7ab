//! The table as people read it: within 80 columns, or wide.

use std::collections::BTreeMap;

use comfy_table::{
    Attribute, Cell as Field, CellAlignment, Color, ContentArrangement, Table as Grid, presets,
};

use host_std::proof::Front;

use super::drive::Run;
use super::{Cell, Expected, Table};
use crate::output::{Failure, outln};

/// What a line of text may be wide.
const WIDTH: usize = 80;

/// Prints the table, the counterexamples, and a line that says what it comes to.
pub(crate) fn print(table: &Table, wide: bool) -> Result<(), Failure> {
    if !table.cells.is_empty() {
        outln!("{}", grid(&table.cells, wide))?;
    }
    for note in notes(table, wide) {
        paragraph(&note, "", "  ")?;
    }
    if !table.history.is_empty() {
        outln!("\nThe same proof, shown the front ends of 2009:\n{}", grid(&table.history, wide))?;
    }
    for (cells, events) in counterexamples(table) {
        outln!("")?;
        paragraph(&title(&cells), "", "    ")?;
        events.iter().try_for_each(|event| paragraph(event, "  ", "      "))?;
    }
    outln!("")?;
    paragraph(&conclusion(table), "", "")
}

/// Prints text in as many lines as it takes.
fn paragraph(text: &str, first: &str, others: &str) -> Result<(), Failure> {
    let options = textwrap::Options::new(WIDTH).initial_indent(first).subsequent_indent(others);
    textwrap::wrap(text, options).iter().try_for_each(|line| outln!("{line}"))
}

fn notes(table: &Table, wide: bool) -> Vec<String> {
    let mut notes = Vec::new();
    if table.cells.iter().any(|cell| cell.run.is_some()) {
        if wide {
            notes.push(
                "guest: requests issued, writes with FUA counted apart. host: fdatasync calls, and writes made with \
                 O_DSYNC or RWF_DSYNC."
                    .into(),
            );
        } else {
            notes.push("cache shown: whether the guest sees a volatile write cache, and so flushes.".into());
            notes.push("host syncs: fdatasync calls, and writes made with O_DSYNC or RWF_DSYNC.".into());
        }
        let root = if table.cells.iter().any(is_traced) { "" } else { " (not seen: it needs root)" };
        notes.push(format!(
            "kernel: flushes and FUA writes that reached a loop device under the same requests{root}."
        ));
    }
    if table.cells.iter().any(|cell| cell.proof.is_some()) {
        notes.push(format!(
            "verdict: of every program of up to {} steps, with every schedule, one host error, and a power cut after \
             every event. declared: loses data, as the mode's name says.",
            table.length
        ));
    }
    notes
}

/// One counterexample of each kind, with the cells that it was found in.
fn counterexamples(table: &Table) -> Vec<(Vec<&Cell>, &[String])> {
    let mut kinds: Vec<(Vec<&Cell>, &[String])> = Vec::new();
    for cell in table.cells.iter().chain(&table.history) {
        for events in cell.proof.iter().flat_map(|proof| proof.counterexamples.values()) {
            // What a declared cell loses it loses in many ways: one shows it.
            let same = |(cells, kind): &(Vec<&Cell>, &[String])| {
                let declared = cell.expected == Expected::DeclaredUnsafe;
                cells.first().is_some_and(|first| first.expected == cell.expected)
                    && (declared || *kind == events.as_slice())
            };
            match kinds.iter().position(same) {
                Some(at) => kinds[at].0.push(cell),
                None => kinds.push((vec![cell], events)),
            }
        }
    }
    kinds
}

/// What was found, and where: fronts by the modes in which it was found.
fn title(cells: &[&Cell]) -> String {
    let what = match cells.first().map(|cell| cell.expected) {
        Some(Expected::DeclaredUnsafe) => "Loses data, as declared",
        Some(Expected::Unsafe2009) => "Lost data in 2009",
        Some(Expected::Safe) | None => "NOT SAFE, and must be",
    };
    let mut modes = BTreeMap::<Front, Vec<&str>>::new();
    for cell in cells {
        let modes = modes.entry(cell.front).or_default();
        if !modes.contains(&cell.mode.name()) {
            modes.push(cell.mode.name());
        }
    }
    let mut fronts = BTreeMap::<_, Vec<&str>>::new();
    for (front, modes) in modes {
        fronts.entry(modes.join(", ")).or_default().push(front.name());
    }
    let places: Vec<_> =
        fronts.iter().map(|(modes, fronts)| format!("{modes} on {}", fronts.join(", "))).collect();
    format!("{what}: {}", places.join("; "))
}

/// What it all comes to.
pub(crate) fn conclusion(table: &Table) -> String {
    let cells = || table.cells.iter().chain(&table.history);
    let (all, proven) = (cells().count(), cells().filter(|cell| cell.proof.is_some()).count());
    let verdict = match table.as_it_must_be {
        Some(false) => "A CELL IS NOT AS IT MUST BE.".into(),
        Some(true) => "Every cell is as it must be.".into(),
        None if table.stopped => {
            format!("Stopped: of {all} cells {proven} were proven, and these are as they must be.")
        }
        None => "Nothing was proven.".into(),
    };
    format!("{verdict} ({:.0} s)", table.seconds)
}

fn is_traced(cell: &Cell) -> bool {
    cell.run.is_some_and(|run| run.kernel.is_some())
}

/// A column: its header, whether it is in the narrow or in the wide table, and a cell's field.
struct Column {
    header: &'static str,
    shown: Shown,
    field: fn(&Cell) -> Field,
}

#[derive(PartialEq, Eq)]
enum Shown {
    Always,
    Narrow,
    Wide,
}

fn columns(cells: &[Cell], wide: bool) -> Vec<Column> {
    let column = |header, shown, field| Column { header, shown, field };
    let mut columns = Vec::new();
    if cells.iter().any(|cell| cell.run.is_some()) {
        columns.extend([
            column("cache\nshown", Shown::Narrow, |cell| {
                Field::new(cell.run.map_or("-", |run| if run.write_cache { "on" } else { "off" }))
            }),
            column("guest sees\ncache", Shown::Wide, |cell| {
                let name = |run: Run| if run.write_cache { "write-back" } else { "write-through" };
                Field::new(cell.run.map_or("-", name))
            }),
            column("guest\nwrites", Shown::Wide, |cell| {
                of_run(cell, |run| u64::from(run.guest.writes - run.guest.fua_writes))
            }),
            column("guest\nFUA", Shown::Wide, |cell| of_run(cell, |run| run.guest.fua_writes.into())),
            column("guest\nflushes", Shown::Wide, |cell| of_run(cell, |run| run.guest.flushes.into())),
            column("host\nsyncs", Shown::Narrow, |cell| {
                of_run(cell, |run| run.host.fdatasyncs + run.host.dsync_writes)
            }),
            column("host\nfdatasync", Shown::Wide, |cell| of_run(cell, |run| run.host.fdatasyncs)),
            column("host\nDSYNC", Shown::Wide, |cell| of_run(cell, |run| run.host.dsync_writes)),
        ]);
    }
    if cells.iter().any(is_traced) {
        columns.extend([
            column("kernel\nflushes", Shown::Narrow, |cell| {
                of_kernel(cell, |counts| counts.flushes + counts.fua_writes)
            }),
            column("kernel\nflushes", Shown::Wide, |cell| of_kernel(cell, |counts| counts.flushes)),
            column("kernel\nFUA", Shown::Wide, |cell| of_kernel(cell, |counts| counts.fua_writes)),
        ]);
    }
    if cells.iter().any(|cell| cell.proof.is_some()) {
        columns.extend([
            column("states\nexplored", Shown::Always, |cell| {
                number(cell.proof.as_ref().map(|proof| proof.states))
            }),
            column("verdict", Shown::Always, verdict),
        ]);
    }
    columns.retain(|column| column.shown == Shown::Always || (column.shown == Shown::Wide) == wide);
    columns
}

fn grid(cells: &[Cell], wide: bool) -> Grid {
    let mut grid = Grid::new();
    grid.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
    let columns = columns(cells, wide);
    grid.set_header(
        ["front end", "cache\nmode"].into_iter().chain(columns.iter().map(|column| column.header)),
    );
    for (index, cell) in cells.iter().enumerate() {
        let first = index == 0 || cells[index - 1].front != cell.front;
        let front = Field::new(if first { cell.front.name() } else { "" });
        let fields = columns.iter().map(|column| (column.field)(cell));
        grid.add_row([front, Field::new(cell.mode.name())].into_iter().chain(fields));
    }
    grid
}

fn of_run(cell: &Cell, value: impl Fn(Run) -> u64) -> Field {
    number(cell.run.map(value))
}

fn of_kernel(cell: &Cell, value: impl Fn(host_std::trace::Counts) -> u64) -> Field {
    number(cell.run.and_then(|run| run.kernel).map(value))
}

fn number(value: Option<u64>) -> Field {
    Field::new(value.map_or_else(|| "-".into(), thousands)).set_alignment(CellAlignment::Right)
}

/// 1234567 as 1,234,567.
pub(crate) fn thousands(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn verdict(cell: &Cell) -> Field {
    let Some(proof) = &cell.proof else { return Field::new("-") };
    let text = match (proof.safe, cell.expected) {
        (true, Expected::Safe) => "SAFE",
        (false, Expected::DeclaredUnsafe) => "declared",
        (false, _) => "UNSAFE",
        (true, _) => "SAFE, must not be",
    };
    let field = Field::new(text);
    if cell.as_it_must_be() {
        field.fg(if proof.safe { Color::Green } else { Color::Yellow })
    } else {
        field.fg(Color::Red).add_attribute(Attribute::Bold)
    }
}

#[cfg(test)]
mod tests {
    use super::thousands;

    #[test]
    fn digits_are_grouped_from_the_right() {
        for (value, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(thousands(value), text);
        }
    }
}
