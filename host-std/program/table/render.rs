//! The table as people read it.

use comfy_table::{
    Attribute, Cell as Field, CellAlignment, Color, ContentArrangement, Table as Grid, presets,
};

use super::{Cell, Expected, Table};
use crate::output::{Failure, outln};

/// Prints the table, the counterexamples, and a line that says what it comes to.
pub(crate) fn print(table: &Table) -> Result<(), Failure> {
    if !table.cells.is_empty() {
        outln!("{}", grid(&table.cells))?;
    }
    if table.cells.iter().any(|cell| cell.run.is_some()) {
        outln!(
            "guest: requests issued, writes with FUA counted apart. host: fdatasync calls, and writes made with O_DSYNC or \
             RWF_DSYNC.\nkernel: flushes and FUA writes that reached a loop device under the same requests (needs root)."
        )?;
    }
    if table.cells.iter().any(|cell| cell.proof.is_some()) {
        outln!(
            "proof: every program of up to {} steps, every schedule, one host error, a power cut after every event.",
            table.length
        )?;
    }
    if !table.history.is_empty() {
        outln!("\nThe same proof, shown the front ends of 2009:\n{}", grid(&table.history))?;
    }
    outln!("")?;
    for cell in table.cells.iter().chain(&table.history) {
        // One is enough to show that a declared cell is what its name says.
        let shown = if cell.expected == Expected::DeclaredUnsafe { 1 } else { usize::MAX };
        for (variant, events) in cell.proof.iter().flat_map(|proof| &proof.counterexamples).take(shown) {
            outln!("{} ({variant})", title(cell))?;
            events.iter().try_for_each(|event| outln!("    {event}"))?;
        }
    }
    let verdict =
        if table.as_it_must_be { "Every cell is as it must be." } else { "A CELL IS NOT AS IT MUST BE." };
    outln!("\n{verdict} ({:.0} s)", table.seconds)
}

fn title(cell: &Cell) -> String {
    let what = match cell.expected {
        Expected::Safe => "NOT SAFE, and must be",
        Expected::DeclaredUnsafe => "loses data, as declared",
        Expected::Unsafe2009 => "as it was in 2009, loses data",
    };
    format!("{}, {}: {what}", cell.front.name(), cell.mode.name())
}

fn grid(cells: &[Cell]) -> Grid {
    let mut grid = Grid::new();
    grid.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
    let ran = cells.iter().any(|cell| cell.run.is_some());
    let traced = cells.iter().any(|cell| cell.run.is_some_and(|run| run.kernel.is_some()));
    let proven = cells.iter().any(|cell| cell.proof.is_some());
    let mut header = vec!["front end", "cache\nmode"];
    if ran {
        header.extend([
            "guest sees\ncache",
            "guest\nwrites",
            "guest\nFUA",
            "guest\nflushes",
            "host\nfdatasync",
            "host\nDSYNC",
        ]);
    }
    if traced {
        header.extend(["kernel\nflushes", "kernel\nFUA"]);
    }
    if proven {
        header.extend(["states\nexplored", "verdict"]);
    }
    grid.set_header(header);
    for (index, cell) in cells.iter().enumerate() {
        let first = index == 0 || cells[index - 1].front != cell.front;
        let mut row =
            vec![Field::new(if first { cell.front.name() } else { "" }), Field::new(cell.mode.name())];
        if ran {
            row.extend(run_fields(cell));
        }
        if traced {
            let kernel = cell.run.and_then(|run| run.kernel);
            row.extend(numbers(kernel.map(|counts| [counts.flushes, counts.fua_writes])));
        }
        if proven {
            row.extend(numbers(cell.proof.as_ref().map(|proof| [proof.states])));
            row.push(verdict(cell));
        }
        grid.add_row(row);
    }
    grid
}

fn run_fields(cell: &Cell) -> Vec<Field> {
    let cache = cell.run.map_or("-", |run| if run.write_cache { "write-back" } else { "write-through" });
    let mut fields = vec![Field::new(cache)];
    fields.extend(numbers(cell.run.map(|run| {
        let plain = run.guest.writes - run.guest.fua_writes;
        let guest = [plain, run.guest.fua_writes, run.guest.flushes].map(u64::from);
        [guest[0], guest[1], guest[2], run.host.fdatasyncs, run.host.dsync_writes]
    })));
    fields
}

fn numbers<const N: usize>(values: Option<[u64; N]>) -> Vec<Field> {
    let texts = values
        .map_or_else(|| [const { String::new() }; N].map(|_| "-".into()), |values| values.map(thousands));
    texts.into_iter().map(|text| Field::new(text).set_alignment(CellAlignment::Right)).collect()
}

/// 1234567 as 1,234,567.
fn thousands(value: u64) -> String {
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
        (false, Expected::DeclaredUnsafe) => "unsafe, declared",
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
