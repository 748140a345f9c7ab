//! Report of a probe: layers, findings, a verdict, and how they print.

use std::fmt;
use std::path::PathBuf;

use blk_core::storage::CacheMode;
use serde::Serialize;

/// What a finding, a layer or a whole stack is worth. The later in this order, the worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Worth knowing; says nothing for or against durability.
    Note,
    /// What was told to be stable is passed on, or is stable here.
    Safe,
    /// It cannot be told from this machine.
    Unknown,
    /// Acknowledged data can be lost in a power cut.
    Unsafe,
}

impl Verdict {
    /// The verdict's name as it prints.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Safe => "safe",
            Self::Unknown => "unknown",
            Self::Unsafe => "unsafe",
        }
    }

    /// The exit status of a program that reports this verdict: 0 safe, 1 unsafe, 3 unknown.
    ///
    /// 2 is left to errors of usage. A note alone is not evidence, and counts as unknown.
    #[must_use]
    pub const fn exit_status(self) -> u8 {
        match self {
            Self::Safe => 0,
            Self::Unsafe => 1,
            Self::Note | Self::Unknown => 3,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One fact about a layer and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What the fact means for data that was acknowledged as stable.
    pub verdict: Verdict,
    /// The fact, as it was read.
    pub what: String,
    /// Why it matters.
    pub why: String,
    /// What an operator can do about it, where there is something to do.
    pub remedy: Option<String>,
}

/// What kind of thing a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerKind {
    /// This process, as far as something in it stands between a sync and the kernel.
    Process,
    /// A regular file, a directory or a block device node: what the path names.
    File,
    /// A mounted filesystem.
    Filesystem,
    /// A partition of a disk.
    Partition,
    /// A loop device.
    Loop,
    /// A device-mapper device.
    DeviceMapper,
    /// An md array.
    Raid,
    /// A bcache device.
    Bcache,
    /// A block device served over a network or by another process.
    Remote,
    /// A block device that lives in memory.
    Memory,
    /// A disk: the lowest layer that this machine can see.
    Disk,
}

impl LayerKind {
    /// The kind's name as it prints.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::File => "file",
            Self::Filesystem => "filesystem",
            Self::Partition => "partition",
            Self::Loop => "loop device",
            Self::DeviceMapper => "device mapper",
            Self::Raid => "md array",
            Self::Bcache => "bcache",
            Self::Remote => "remote device",
            Self::Memory => "memory device",
            Self::Disk => "disk",
        }
    }
}

/// One layer of the stack between a path and the medium.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Layer {
    /// Its name: a path, a mount point, a device name.
    pub name: String,
    /// What it is.
    pub kind: LayerKind,
    /// How many layers lie above it.
    pub depth: u32,
    /// What was found out about it.
    pub findings: Vec<Finding>,
}

impl Layer {
    pub(super) fn new(kind: LayerKind, name: impl Into<String>, depth: u32) -> Self {
        Self { name: name.into(), kind, depth, findings: Vec::new() }
    }

    /// The worst of the layer's findings; [`Verdict::Note`] if nothing speaks for or against it.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Note)
    }

    fn add(&mut self, verdict: Verdict, what: impl Into<String>, why: &str, remedy: Option<&str>) {
        self.findings.push(Finding {
            verdict,
            what: what.into(),
            why: why.to_owned(),
            remedy: remedy.map(str::to_owned),
        });
    }

    pub(super) fn note(&mut self, what: impl Into<String>, why: &str) {
        self.add(Verdict::Note, what, why, None);
    }

    pub(super) fn note_with(&mut self, what: impl Into<String>, why: &str, remedy: &str) {
        self.add(Verdict::Note, what, why, Some(remedy));
    }

    pub(super) fn safe(&mut self, what: impl Into<String>, why: &str) {
        self.add(Verdict::Safe, what, why, None);
    }

    pub(super) fn unknown(&mut self, what: impl Into<String>, why: &str, remedy: &str) {
        self.add(Verdict::Unknown, what, why, Some(remedy));
    }

    pub(super) fn loses(&mut self, what: impl Into<String>, why: &str, remedy: &str) {
        self.add(Verdict::Unsafe, what, why, Some(remedy));
    }
}

/// Whether an image can be opened in a cache mode here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Possible {
    /// It can.
    Yes,
    /// It cannot.
    No,
    /// It could not be found out.
    Unknown,
}

/// What a cache mode is worth on this stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModeReport {
    /// The mode's name, as an operator gives it.
    pub mode: &'static str,
    /// Whether an image can be opened in it.
    pub possible: Possible,
    /// Whether what a guest was told is stable survives a power cut; a note if the mode is impossible.
    pub verdict: Verdict,
    /// Why.
    pub why: String,
}

impl ModeReport {
    pub(super) fn new(mode: CacheMode, possible: Possible, verdict: Verdict, why: String) -> Self {
        Self { mode: mode.name(), possible, verdict, why }
    }
}

/// The answer to "is my stack safe?" for one path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The path, with symbolic links resolved.
    pub path: PathBuf,
    /// The layers, from the path down to the disks.
    pub layers: Vec<Layer>,
    /// Each cache mode, in the order of the integrity table.
    pub modes: Vec<ModeReport>,
    /// The worst of the layers' verdicts. A stack about which nothing was found out is unknown.
    pub verdict: Verdict,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.path.display(), self.verdict)?;
        for layer in &self.layers {
            let indent = (layer.depth as usize).min(16);
            writeln!(f, "\n{:indent$}{} {}: {}", "", layer.kind.name(), layer.name, layer.verdict())?;
            for finding in &layer.findings {
                writeln!(f, "{:indent$}  {:<8}{}: {}", "", finding.verdict, finding.what, finding.why)?;
                if let Some(remedy) = &finding.remedy {
                    writeln!(f, "{:indent$}          remedy: {remedy}", "")?;
                }
            }
        }
        writeln!(f)?;
        for mode in &self.modes {
            let verdict = match mode.possible {
                Possible::No => "not here",
                Possible::Yes | Possible::Unknown => mode.verdict.name(),
            };
            writeln!(f, "cache={:<13}{verdict:<10}{}", mode.mode, mode.why)?;
        }
        Ok(())
    }
}
