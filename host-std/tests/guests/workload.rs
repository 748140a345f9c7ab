//! What the guest's workload said of its files, and whether a file system still holds what it was told is stable.

use std::collections::BTreeMap;

/// One thing that the guest said, as a mark in a recording keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    /// A version of a file is about to be written, with so many units; none: it is removed.
    Start { name: String, version: u64, units: u64 },
    /// The guest was told that it is stable.
    Ack { name: String, version: u64, units: u64 },
}

impl Said {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let kind = words.next()?;
        let name = words.next()?.to_owned();
        let version = words.next()?.parse().ok()?;
        let units = words.next()?.parse().ok()?;
        match kind {
            "=START" => Some(Self::Start { name, version, units }),
            "=ACK" => Some(Self::Ack { name, version, units }),
            _ => None,
        }
    }
}

/// Whether a line of the guest is one for the record.
pub(crate) fn is_said(line: &str) -> bool {
    Said::parse(line).is_some()
}

/// A line that waits for an answer, and the answer.
pub(crate) fn answer(line: &str) -> Option<&'static str> {
    line.starts_with("=START ").then_some("go")
}

/// What is known of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct File {
    /// The version that was acknowledged last, and its units.
    stable: Option<(u64, u64)>,
    /// Versions begun since, with their units.
    begun: Vec<(u64, u64)>,
}

/// What a file system must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Promises {
    files: BTreeMap<String, File>,
    pub(crate) acknowledged: usize,
}

impl Promises {
    /// From all that the guest had said, in order.
    pub(crate) fn new<'a>(said: impl IntoIterator<Item = &'a str>) -> Self {
        let mut promises = Self::default();
        for said in said.into_iter().filter_map(Said::parse) {
            match said {
                Said::Start { name, version, units } => {
                    promises.files.entry(name).or_default().begun.push((version, units));
                }
                Said::Ack { name, version, units } => {
                    promises.acknowledged += 1;
                    let file = promises.files.entry(name).or_default();
                    // One thing after the other is done to a file: nothing of it is under way.
                    file.begun.clear();
                    file.stable = Some((version, units));
                }
            }
        }
        promises
    }

    /// What is wrong with what the guest found.
    pub(crate) fn broken(&self, found: &Found) -> Vec<String> {
        let mut broken = Vec::new();
        for (name, file) in &self.files {
            if let Err(what) = file.check(name == "log", is_in_place(name), found.files.get(name)) {
                broken
                    .push(format!("{name}: {what}; promised: {file:?}; found: {:?}", found.files.get(name)));
            }
        }
        for name in found.files.keys().filter(|name| !self.files.contains_key(*name)) {
            broken.push(format!("{name}: nobody made it"));
        }
        broken
    }
}

/// Written over in place, unit by unit: between two versions it may be a mixture.
fn is_in_place(name: &str) -> bool {
    matches!(name, "data" | "sync")
}

impl File {
    fn check(&self, log: bool, in_place: bool, found: Option<&Content>) -> Result<(), &'static str> {
        let may_be_gone = self.stable.is_none_or(|(_, units)| units == 0)
            || self.begun.iter().any(|&(_, units)| units == 0);
        let Some(found) = found else {
            return if may_be_gone { Ok(()) } else { Err("missing") };
        };
        let Some((stable, units)) = self.stable else {
            // Never stable: it may hold anything.
            return Ok(());
        };
        if units == 0 {
            return if self.begun.is_empty() { Err("not removed") } else { Ok(()) };
        }
        if log {
            let good = found.runs.first().filter(|run| run.version == Some(1)).map_or(0, |run| run.units);
            return if good >= units { Ok(()) } else { Err("lost its end") };
        }
        let newer =
            |version: u64| self.begun.iter().find(|&&(begun, _)| begun == version).map(|&(_, units)| units);
        let allowed =
            |run: &Run| run.version.is_some_and(|version| version == stable || newer(version).is_some());
        if !found.runs.iter().all(allowed) {
            return Err("holds what is older than promised, or rubbish");
        }
        let expected = match found.runs.as_slice() {
            [] => return Err("empty"),
            [run, ..] if !in_place => match run.version {
                Some(version) if version == stable => units,
                Some(version) => newer(version).unwrap_or(units),
                None => units,
            },
            _ => units,
        };
        if !in_place && found.runs.len() != 1 {
            return Err("mixes versions");
        }
        if found.bytes != expected * 512 { Err("of another length") } else { Ok(()) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    /// `None` for what is no unit that belongs there.
    version: Option<u64>,
    units: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Content {
    bytes: u64,
    runs: Vec<Run>,
}

/// What the guest found on a file system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    files: BTreeMap<String, Content>,
    /// Whether it could be mounted, and the status of its fsck.
    pub(crate) check: Option<(bool, i32)>,
}

impl Found {
    /// From what `agent files`, or `check`, printed.
    pub(crate) fn new(lines: &[String]) -> Self {
        let mut found = Self::default();
        for line in lines {
            let words: Vec<_> = line.split(' ').collect();
            match words.as_slice() {
                ["=FILE", name, bytes, runs] => {
                    let content = Content { bytes: bytes.parse().expect("a length"), runs: parse_runs(runs) };
                    found.files.insert((*name).to_owned(), content);
                }
                ["=CHECK", mounted, status] => {
                    found.check = Some((*mounted == "mounted", status.parse().expect("a status")));
                }
                _ => {}
            }
        }
        found
    }

    pub(crate) fn files(&self) -> usize {
        self.files.len()
    }
}

fn parse_runs(text: &str) -> Vec<Run> {
    let run = |text: &str| {
        let (version, units) = text.split_once('x').expect("VERSIONxUNITS");
        Run { version: version.parse().ok(), units: units.parse().expect("units") }
    };
    if text == "-" { Vec::new() } else { text.split(',').map(run).collect() }
}

/// A judge that never condemns proves nothing.
#[test]
fn a_judge_finds_what_is_lost() {
    let found = |lines: &[&str]| Found::new(&lines.iter().map(|&line| line.to_owned()).collect::<Vec<_>>());
    let broken =
        |said: &[&str], files: &[&str]| Promises::new(said.iter().copied()).broken(&found(files)).len();

    let new = ["=START new1 1 4", "=ACK new1 1 4"];
    assert_eq!(broken(&new, &["=FILE new1 2048 1x4"]), 0);
    assert_eq!(broken(&new, &[]), 1, "missing");
    assert_eq!(broken(&new, &["=FILE new1 2048 1x3,zx1"]), 1, "zeroes");
    assert_eq!(broken(&new, &["=FILE new1 1536 1x3"]), 1, "short");
    assert_eq!(broken(&new, &["=FILE new1 0 -"]), 1, "empty");
    assert_eq!(broken(&new[..1], &[]), 0, "not acknowledged");
    assert_eq!(broken(&new, &["=FILE new1 2048 1x4", "=FILE odd 512 9x1"]), 1, "from nowhere");

    let gone = ["=START new1 1 4", "=ACK new1 1 4", "=START new1 2 0", "=ACK new1 2 0"];
    assert_eq!(broken(&gone[..3], &[]), 0, "being removed");
    assert_eq!(broken(&gone[..3], &["=FILE new1 2048 1x4"]), 0, "not yet");
    assert_eq!(broken(&gone, &[]), 0);
    assert_eq!(broken(&gone, &["=FILE new1 2048 1x4"]), 1, "back again");

    let data = ["=START data 1 4", "=ACK data 1 4", "=START data 2 4", "=ACK data 2 4", "=START data 3 4"];
    assert_eq!(broken(&data, &["=FILE data 2048 2x2,3x2"]), 0, "a mixture");
    assert_eq!(broken(&data, &["=FILE data 2048 2x2,1x2"]), 1, "too old");
    assert_eq!(broken(&data, &["=FILE data 2048 2x2,?x2"]), 1, "torn");
    assert_eq!(broken(&data, &["=FILE data 2048 4x4"]), 1, "from the future");

    let config = ["=START config 5 4", "=ACK config 5 4", "=START config 6 2"];
    assert_eq!(broken(&config, &["=FILE config 2048 5x4"]), 0);
    assert_eq!(broken(&config, &["=FILE config 1024 6x2"]), 0);
    assert_eq!(broken(&config, &["=FILE config 1024 5x2"]), 1, "half");
    assert_eq!(broken(&config, &["=FILE config 2048 5x2,6x2"]), 1, "a mixture");

    let log = ["=START log 1 4", "=ACK log 1 4", "=START log 9 6", "=ACK log 1 6"];
    assert_eq!(broken(&log, &["=FILE log 3072 1x6"]), 0);
    assert_eq!(broken(&log, &["=FILE log 2048 1x4"]), 1, "the end");
    assert_eq!(broken(&log[..3], &["=FILE log 3072 1x4,zx2"]), 0, "not yet");
}
