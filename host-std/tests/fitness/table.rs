//! The table: measured, and as the page has it.

use std::path::PathBuf;

use crate::program::Needs;
use crate::programs::LEVELS;

/// The fronts: their programs, and their names on the page.
const FRONTS: [(&str, &str); 9] = [
    ("virtio_blk_mmio", "virtio-blk, mmio"),
    ("virtio_blk_pci", "virtio-blk, PCI"),
    ("scsi_unit", "SCSI logical unit"),
    ("virtio_scsi_mmio", "virtio-scsi, mmio"),
    ("virtio_scsi_pci", "virtio-scsi, PCI"),
    ("ide_channel", "IDE channel"),
    ("pci_ide", "PCI IDE"),
    ("ahci", "AHCI"),
    ("pci_ahci", "AHCI, PCI"),
];

/// The columns behind the front's name.
const COLUMNS: [Column; 5] = [
    ("state", |needs| needs.state),
    ("code", |needs| needs.code),
    ("stack: init", |needs| needs.init),
    ("access", |needs| needs.access),
    ("poll", |needs| needs.poll),
];

type Column = (&'static str, fn(&Needs) -> u64);

/// Differences that do not count: of a hundred parts, and of bytes where these are few.
const PERCENT: u64 = 3;
const BYTES: u64 = 16;

/// What each front needs, by front, column and level.
pub(crate) struct Table {
    rows: Vec<(String, Vec<Vec<u64>>)>,
}

impl Table {
    /// Measures the programs, which `build` builds.
    pub(crate) fn measure(build: impl Fn(&str, &[&str]) -> PathBuf) -> Self {
        let programs = FRONTS.map(|(program, _)| program);
        let needs = LEVELS.map(|level| {
            let folder = build(level, &programs);
            programs.map(|name| Needs::of(&std::fs::read(folder.join(name)).expect("it was built")))
        });
        let row = |(front, (_, name)): (usize, &(&str, &str))| {
            let values = COLUMNS.iter().map(|(_, of)| needs.iter().map(|level| of(&level[front])).collect());
            ((*name).to_owned(), values.collect())
        };
        Self { rows: FRONTS.iter().enumerate().map(row).collect() }
    }

    /// The table of a page.
    pub(crate) fn parse(page: &str) -> Self {
        let numbers = |cell: &str| cell.split('/').map(|n| n.trim().parse().unwrap_or(0)).collect();
        let row = |line: &str| {
            let mut cells = line.trim_matches('|').split('|').map(str::trim);
            (cells.next().unwrap_or_default().to_owned(), cells.map(numbers).collect())
        };
        Self { rows: lines(page).map(row).collect() }
    }

    /// The page with this table in the place of its own.
    pub(crate) fn replace_in(&self, page: &str) -> String {
        let (before, rest) = page.split_once(&heading()).expect("the page has the table");
        let behind = rest.split_once("\n\n").map_or("\n", |(_, behind)| behind);
        format!("{before}{}{}\n{behind}", heading(), self.text())
    }

    /// What differs in another table, a line each.
    pub(crate) fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (name, columns) in &self.rows {
            let theirs = other.rows.iter().find(|(other, _)| other == name).map(|(_, columns)| columns);
            for (n, (column, _)) in COLUMNS.iter().enumerate() {
                let there = theirs.and_then(|theirs| theirs.get(n)).map_or(&[][..], Vec::as_slice);
                if !near(&columns[n], there) {
                    found.push(format!("{name}, {column}: {}, not {}", cell(&columns[n]), cell(there)));
                }
            }
        }
        found
    }

    fn text(&self) -> String {
        let row = |(name, columns): &(String, Vec<Vec<u64>>)| {
            let cells: String = columns.iter().map(|column| format!(" {} |", cell(column))).collect();
            format!("| {name} |{cells}\n")
        };
        self.rows.iter().map(row).collect()
    }
}

fn heading() -> String {
    let names: String = COLUMNS.iter().map(|(name, _)| format!(" {name} |")).collect();
    format!("| |{names}\n|---|{}\n", "---:|".repeat(COLUMNS.len()))
}

/// The rows of the page's table.
fn lines(page: &str) -> impl Iterator<Item = &str> {
    let behind = page.split_once(&heading()).map_or("", |(_, behind)| behind);
    behind.lines().take_while(|line| line.starts_with('|'))
}

/// One number for all levels, or one for each.
fn cell(values: &[u64]) -> String {
    let same = values.windows(2).all(|pair| pair[0] == pair[1]);
    let values: Vec<String> = values.iter().map(u64::to_string).collect();
    if same { values.first().cloned().unwrap_or_else(|| "nothing".into()) } else { values.join(" / ") }
}

fn near(measured: &[u64], there: &[u64]) -> bool {
    let each: Vec<u64> = if there.len() == 1 { vec![there[0]; measured.len()] } else { there.to_vec() };
    let near = |(one, other): (&u64, &u64)| one.abs_diff(*other) <= (other * PERCENT / 100).max(BYTES);
    each.len() == measured.len() && measured.iter().zip(&each).all(near)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_as_it_is_written_and_a_difference_is_seen() {
        let table = |code: u64| Table {
            rows: vec![("x".into(), vec![vec![5; 3], vec![code, 2, 3], vec![0; 3], vec![0; 3], vec![0; 3]])],
        };
        let page = format!("before\n\n{}| old | 1 |\n\nbehind\n", heading());
        let page = table(10_000).replace_in(&page);
        assert!(
            page.starts_with("before\n\n| |") && page.ends_with("|\n\nbehind\n") && !page.contains("old")
        );
        assert_eq!(table(10_300).differences(&Table::parse(&page)), [""; 0]);
        assert_eq!(
            table(10_301).differences(&Table::parse(&page)),
            ["x, code: 10301 / 2 / 3, not 10000 / 2 / 3"]
        );
    }
}
