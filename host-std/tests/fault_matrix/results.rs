//! What the cases came to: one JSON line each, kept in a file, and a table.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use crate::calls::Target;
use comfy_table::{Table, presets};
use serde::{Deserialize, Serialize};

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// Something that was acknowledged is not there, or not stable.
    Lost,
    /// A request came back twice, or the device broke the rules otherwise.
    Twice,
    /// Somebody waits for ever.
    Waiting,
    /// The server, a device or a thread is gone.
    Gone,
    /// The stop did not say what it did.
    Stop,
    /// This test cannot do its work.
    Harness,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Finding {
    pub(crate) kind: Kind,
    pub(crate) text: String,
}

/// What is kept of a case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) front: String,
    pub(crate) cache: String,
    /// CALL:ACTION.
    pub(crate) plan: String,
    /// The call is the loader's, the allocator's or the standard library's.
    pub(crate) library: bool,
    pub(crate) reached: bool,
    pub(crate) findings: Vec<Finding>,
    pub(crate) milliseconds: u64,
}

impl Line {
    fn key(&self) -> (String, String, String) {
        (self.front.clone(), self.cache.clone(), self.plan.clone())
    }
}

/// The calls of a recorded life: the list of cases of a run that is resumed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Recorded {
    pub(crate) front: String,
    pub(crate) cache: String,
    /// Each call, whether it is the library's, and what it is about.
    pub(crate) calls: Vec<(String, bool, Target)>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Entry {
    Recorded(Recorded),
    Line(Line),
}

/// All results so far, in memory and in the file.
pub(crate) struct Results {
    file: Option<File>,
    pub(crate) lines: Vec<Line>,
    pub(crate) recorded: Vec<Recorded>,
}

impl Results {
    /// The results of a file, which is gone on with; of none, if there is no path.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self, String> {
        let mut results = Self { file: None, lines: Vec::new(), recorded: Vec::new() };
        let Some(path) = path else { return Ok(results) };
        let error = |error: std::io::Error| format!("--results {}: {error}", path.display());
        // A line that was cut off by a kill is one that is not there.
        for line in std::fs::read_to_string(path).unwrap_or_default().lines() {
            match serde_json::from_str(line) {
                Ok(Entry::Line(line)) => results.lines.push(line),
                Ok(Entry::Recorded(recorded)) => results.recorded.push(recorded),
                Err(_) => {}
            }
        }
        results.file = Some(OpenOptions::new().create(true).append(true).open(path).map_err(error)?);
        Ok(results)
    }

    pub(crate) fn done(&self) -> HashSet<(String, String, String)> {
        self.lines.iter().map(Line::key).collect()
    }

    pub(crate) fn add(&mut self, line: Line) -> Result<(), String> {
        self.keep(&Entry::Line(line.clone()))?;
        self.lines.push(line);
        Ok(())
    }

    pub(crate) fn add_recorded(&mut self, recorded: Recorded) -> Result<(), String> {
        self.keep(&Entry::Recorded(recorded.clone()))?;
        self.recorded.push(recorded);
        Ok(())
    }

    fn keep(&mut self, entry: &Entry) -> Result<(), String> {
        let Some(file) = &mut self.file else { return Ok(()) };
        // In one write, and behind a line that may have been cut off.
        let mut line = serde_json::to_string(entry).map_err(|error| error.to_string())?;
        line.push('\n');
        file.write_all(line.as_bytes()).map_err(|error| format!("--results: {error}"))
    }

    /// How many findings there are.
    pub(crate) fn findings(&self) -> usize {
        self.lines.iter().map(|line| line.findings.len()).sum()
    }

    /// Prints what came out, row by row.
    pub(crate) fn print(&self) {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN).set_header([
            "life",
            "calls",
            "kills",
            "errors",
            "lost",
            "twice",
            "waiting",
            "gone",
            "stop",
            "not reached",
        ]);
        for (front, cache) in self.lives() {
            for library in [false, true] {
                let rows: Vec<_> = self
                    .lines
                    .iter()
                    .filter(|line| line.front == front && line.cache == cache && line.library == library)
                    .collect();
                if !rows.is_empty() {
                    table.add_row(row(&format!("{front}, {cache}"), library, &rows));
                }
            }
        }
        println!("{table}");
    }

    fn lives(&self) -> Vec<(String, String)> {
        let mut lives = Vec::new();
        for line in &self.lines {
            let life = (line.front.clone(), line.cache.clone());
            if !lives.contains(&life) {
                lives.push(life);
            }
        }
        lives
    }
}

fn row(life: &str, library: bool, lines: &[&Line]) -> Vec<String> {
    let calls: HashSet<_> =
        lines.iter().filter_map(|line| line.plan.rsplit_once(':')).map(|plan| plan.0).collect();
    let kills = lines.iter().filter(|line| line.reached && line.plan.contains(":kill-")).count();
    let reached = lines.iter().filter(|line| line.reached).count();
    let with = |kind: Kind| {
        lines.iter().filter(|line| line.findings.iter().any(|finding| finding.kind == kind)).count()
    };
    let name = if library { format!("{life}: library") } else { life.to_owned() };
    let numbers = [
        calls.len(),
        kills,
        reached - kills,
        with(Kind::Lost),
        with(Kind::Twice),
        with(Kind::Waiting),
        with(Kind::Gone),
        with(Kind::Stop),
        lines.len() - reached,
    ];
    std::iter::once(name).chain(numbers.iter().map(ToString::to_string)).collect()
}
