//! The page that says what a request costs, in instructions: checked, and written anew.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::case::{Below, Case, FRONTS, Operation};
use crate::measure::count_all;

const PAGE: &str = "blk-core/FITNESS.md";
const HEADING: &str = "| instructions a request | done at once | polled for |\n|---|---:|---:|\n";
/// Differences that do not count: of a hundred parts, and of instructions where these are few.
const PERCENT: u64 = 2;
const FEW: u64 = 4;

/// The models' own rows: with nothing below.
const BELOW: [Below; 2] = [Below::Null, Below::Later];

/// The table: a line for each front.
struct Table(Vec<String>);

impl Table {
    /// Counts. `None` without valgrind.
    fn count(cases: &[Case]) -> Option<Self> {
        let own: Vec<usize> = (0..cases.len()).filter(|&row| BELOW.contains(&cases[row].below)).collect();
        let counts = count_all(&own);
        let cell = |front: &str, below: Below| -> Option<String> {
            let mut cell = Vec::new();
            for operation in Operation::ALL {
                let is_it = |row: &usize| {
                    let case = cases[*row];
                    (case.front, case.below, case.operation) == (front, below, operation)
                };
                // There is no queued flush.
                if let Some(at) = own.iter().position(is_it) {
                    cell.push(counts[at]?.to_string());
                }
            }
            Some(cell.join(" / "))
        };
        let row = |front: &&str| {
            let [at_once, later] = BELOW.map(|below| cell(front, below));
            Some(format!("| {front} | {} | {} |", at_once?, later?))
        };
        FRONTS.iter().map(row).collect::<Option<_>>().map(Self)
    }

    /// That of the page.
    fn parse(page: &str) -> Self {
        let behind = page.split_once(HEADING).map_or("", |(_, behind)| behind);
        Self(behind.lines().take_while(|line| line.starts_with('|')).map(str::to_owned).collect())
    }

    /// The page with this table in the place of its own.
    fn replace_in(&self, page: &str) -> String {
        let (before, rest) = page.split_once(HEADING).expect("the page has the table");
        let behind = rest.split_once("\n\n").map_or("\n", |(_, behind)| behind);
        format!("{before}{HEADING}{}\n\n{behind}", self.0.join("\n"))
    }

    /// What differs in another table, a line each.
    fn differences(&self, other: &Self) -> String {
        let mut found = String::new();
        for (row, front) in self.0.iter().zip(FRONTS) {
            let there = other.0.iter().find(|there| name(there) == front).map_or("", String::as_str);
            if !near(row, there) {
                let _ = writeln!(found, "counted {row}\nthe page {there}");
            }
        }
        found
    }
}

/// The first cell of a row.
fn name(row: &str) -> &str {
    row.trim_matches('|').split('|').next().unwrap_or_default().trim()
}

/// The numbers behind it.
fn numbers(row: &str) -> Vec<u64> {
    let behind = row.trim_matches('|').split_once('|').map_or("", |(_, behind)| behind);
    behind.split(['/', '|']).filter_map(|number| number.trim().parse().ok()).collect()
}

fn near(counted: &str, there: &str) -> bool {
    let (counted, there) = (numbers(counted), numbers(there));
    let near = |(one, other): (&u64, &u64)| one.abs_diff(*other) <= (other * PERCENT / 100).max(FEW);
    counted.len() == there.len() && counted.iter().zip(&there).all(near)
}

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join(PAGE)
}

/// Compares the page with what is counted, or writes it.
///
/// # Errors
/// What differs, or why nothing can be said.
pub(crate) fn check(cases: &[Case], write: bool) -> Result<(), String> {
    let fails = |error| format!("{PAGE}: {error}");
    let text = std::fs::read_to_string(page()).map_err(fails)?;
    let counted = Table::count(cases)
        .ok_or("instructions are counted by valgrind (apt-get install valgrind), which is not there")?;
    if write {
        return std::fs::write(page(), counted.replace_in(&text)).map_err(fails);
    }
    let differences = counted.differences(&Table::parse(&text));
    if differences.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{PAGE} says otherwise, by more than {PERCENT} %:\n{differences}\
         If this is as it should be: cargo bench -p host-std --bench request_cost -- --write"
    ))
}

/// That the comparison can fail is tried each time.
pub(crate) fn try_out() {
    let row = |read| format!("| x | {read} / 20 / 30 | 1000 / 5 / 5 |");
    assert!(near(&row(10_000), &row(10_000)) && near(&row(10_200), &row(10_000)));
    assert!(!near(&row(10_201), &row(10_000)) && !near(&row(9_799), &row(10_000)) && !near(&row(1), ""));
    let page = format!("before\n\n{HEADING}| old | 1 | 2 |\n\nbehind\n");
    let page = Table(vec![row(7)]).replace_in(&page);
    assert!(page.starts_with("before\n\n") && page.ends_with("|\n\nbehind\n") && !page.contains("old"));
    assert_eq!(Table::parse(&page).0, [row(7)]);
}
