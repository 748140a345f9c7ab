//! What came of both disks, side by side.

use std::collections::BTreeMap;
use std::time::Duration;

use blk_core::storage::CacheMode;
use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use serde::Serialize;

use super::files::{FILE_BYTES, FILES, File, Found};
use super::life::Outcome;
use crate::output::{Failure, outln};

/// What a line of text may be wide.
const WIDTH: usize = 80;

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Fate {
    Kept,
    Lost,
    /// It is there, with other contents.
    Damaged,
}

impl Fate {
    fn of(file: File, outcome: &Outcome) -> Self {
        match outcome.found.iter().find(|(found, _)| *found == file) {
            Some((_, Found::Whole)) => Self::Kept,
            Some((_, Found::Damaged)) => Self::Damaged,
            // Where nothing can be mounted nothing is found.
            Some((_, Found::Missing)) | None => Self::Lost,
        }
    }

    fn cell(self, synced: bool) -> Cell {
        let (text, color) = match (self, synced) {
            (Self::Kept, _) => ("kept", Color::Green),
            (Self::Lost, true) => ("LOST", Color::Red),
            (Self::Lost, false) => ("lost", Color::Reset),
            (Self::Damaged, true) => ("DAMAGED", Color::Red),
            (Self::Damaged, false) => ("damaged", Color::Reset),
        };
        Cell::new(text).fg(color)
    }
}

/// A file, and what became of it.
#[derive(Debug, Serialize)]
struct Row {
    file: &'static str,
    synced: bool,
    #[serde(rename = "unsafe")]
    unsafe_: Fate,
    none: Fate,
}

/// A disk.
#[derive(Debug, Serialize)]
struct Disk {
    /// Records of the recording up to the power cut.
    position: u64,
    /// What was lost then.
    state: String,
    /// Why the file system could not be mounted, if it could not.
    unmountable: Option<String>,
    /// Of the files that were synced.
    synced_files_lost: usize,
}

/// Both disks, side by side.
#[derive(Debug, Serialize)]
pub(super) struct Comparison {
    files: Vec<Row>,
    file_bytes: usize,
    /// By the cache mode.
    disks: BTreeMap<&'static str, Disk>,
    /// Whether `cache=none` has kept all that was synced.
    pub(super) as_promised: bool,
    seconds: f64,
}

impl Comparison {
    pub(super) fn new(unsafe_: &Outcome, none: &Outcome, time: Duration) -> Self {
        let files = FILES.into_iter().map(|file| Row {
            file: file.name,
            synced: file.synced,
            unsafe_: Fate::of(file, unsafe_),
            none: Fate::of(file, none),
        });
        let disk = |outcome: &Outcome| Disk {
            position: outcome.position,
            state: outcome.state.clone(),
            unmountable: outcome.unmountable.clone(),
            synced_files_lost: lost(outcome).count(),
        };
        Self {
            files: files.collect(),
            file_bytes: FILE_BYTES,
            disks: [(CacheMode::Unsafe, unsafe_), (CacheMode::None, none)]
                .map(|(mode, outcome)| (mode.name(), disk(outcome)))
                .into(),
            as_promised: lost(none).next().is_none(),
            seconds: time.as_secs_f64(),
        }
    }

    /// Prints the table, and what it means.
    pub(super) fn print(&self) -> Result<(), Failure> {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(["file", "before the power cut", "cache=unsafe", "cache=none"]);
        for row in &self.files {
            let before = if row.synced { "written and synced" } else { "written" };
            let fates = [row.unsafe_, row.none].map(|fate| fate.cell(row.synced));
            table.add_row([row.file, before].map(Cell::new).into_iter().chain(fates));
        }
        outln!("{table}")?;
        for (mode, disk) in &self.disks {
            if let Some(why) = &disk.unmountable {
                paragraph(&format!("cache={mode}: the file system cannot be mounted any more: {why}."))?;
            }
        }
        paragraph(&self.conclusion())?;
        paragraph(
            "`blk-host` proves the same for every front end and cache mode; `blk-host serve` has disks for your own guests.",
        )
    }

    fn conclusion(&self) -> String {
        let synced = self.files.iter().filter(|row| row.synced).count();
        let lost = |mode: CacheMode| self.disks.get(mode.name()).map_or(0, |disk| disk.synced_files_lost);
        let none = match lost(CacheMode::None) {
            0 => format!("cache=none kept all {synced} files that were synced, as it must"),
            lost => format!("cache=none LOST {lost} OF {synced} FILES THAT WERE SYNCED, which it must not"),
        };
        let unsafe_ = match lost(CacheMode::Unsafe) {
            0 => "cache=unsafe happened to lose none".into(),
            lost => format!("cache=unsafe lost {lost}: it never asks the host to make anything stable"),
        };
        format!(
            "{none}; {unsafe_}. A file that was not synced may be lost in every mode. ({:.0} s)",
            self.seconds
        )
    }
}

/// The files that the guest had been told are stable, and that are not there whole.
fn lost(outcome: &Outcome) -> impl Iterator<Item = &File> {
    outcome.synced.iter().filter(|file| Fate::of(**file, outcome) != Fate::Kept)
}

fn paragraph(text: &str) -> Result<(), Failure> {
    textwrap::wrap(text, WIDTH).iter().try_for_each(|line| outln!("{line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(fate: impl Fn(File) -> Found) -> Outcome {
        Outcome {
            synced: FILES.into_iter().filter(|file| file.synced).collect(),
            position: 1,
            state: "everything volatile lost".into(),
            unmountable: None,
            found: FILES.into_iter().map(|file| (file, fate(file))).collect(),
        }
    }

    fn compare(unsafe_: &Outcome, none: &Outcome) -> Comparison {
        Comparison::new(unsafe_, none, Duration::from_secs(7))
    }

    #[test]
    fn a_synced_file_that_is_not_whole_breaks_the_promise_and_another_does_not() {
        let synced_only = outcome(|file| if file.synced { Found::Whole } else { Found::Missing });
        let nothing = outcome(|_| Found::Missing);
        let kept = compare(&nothing, &synced_only);
        assert!(kept.as_promised, "{kept:?}");
        for bad in [Found::Missing, Found::Damaged] {
            let none = outcome(|file| if file.name == "f3" { bad } else { Found::Whole });
            let broken = compare(&nothing, &none);
            assert!(!broken.as_promised, "{broken:?}");
            assert!(broken.conclusion().contains("LOST 1 OF 6"), "{}", broken.conclusion());
        }
    }

    #[test]
    fn nothing_is_kept_where_nothing_can_be_mounted() {
        let unmountable =
            Outcome { found: Vec::new(), unmountable: Some("EUCLEAN".into()), ..outcome(|_| Found::Whole) };
        assert!(!compare(&unmountable, &unmountable).as_promised);
    }
}
