//! The files of the demonstration, and what a guest says of them on its console.

use std::fmt;
use std::str::FromStr;

/// A file that the guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct File {
    pub(super) name: &'static str,
    /// Whether the guest syncs it.
    pub(super) synced: bool,
}

/// In the order in which they are written. Those that are not synced come last: to sync a later file can make them stable, too.
pub(super) const FILES: [File; 8] = [
    File { name: "f1", synced: true },
    File { name: "f2", synced: true },
    File { name: "f3", synced: true },
    File { name: "f4", synced: true },
    File { name: "f5", synced: true },
    File { name: "f6", synced: true },
    File { name: "f7", synced: false },
    File { name: "f8", synced: false },
];

/// Bytes of each.
pub(super) const FILE_BYTES: usize = 64 << 10;

impl File {
    /// What is written into it: lines of 16 bytes, each with its name and their number.
    pub(super) fn contents(&self) -> Vec<u8> {
        (0..FILE_BYTES / 16).flat_map(|line| format!("{:5} {line:9}\n", self.name).into_bytes()).collect()
    }

    fn named(name: &str) -> Option<Self> {
        FILES.into_iter().find(|file| file.name == name)
    }
}

/// What a guest finds of a file after the power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Whole,
    /// There is no such file.
    Missing,
    /// It is there, and holds something else, or cannot be read.
    Damaged,
}

impl Found {
    const ALL: [Self; 3] = [Self::Whole, Self::Missing, Self::Damaged];

    const fn name(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Missing => "missing",
            Self::Damaged => "damaged",
        }
    }
}

/// A line of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// A file has been written, and the guest has been told that it is synced.
    Synced(File),
    /// A file has been written.
    Written(File),
    /// What is there of a file.
    Found(File, Found),
    /// There is no file system that can be mounted, for this reason.
    Unmountable(String),
    /// The guest cannot go on, for this reason.
    Failed(String),
    /// It has done what it was there for.
    Done,
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Synced(file) => write!(f, "synced {}", file.name),
            Self::Written(file) => write!(f, "written {}", file.name),
            Self::Found(file, found) => write!(f, "found {} {}", file.name, found.name()),
            Self::Unmountable(why) => write!(f, "unmountable {why}"),
            Self::Failed(why) => write!(f, "failed {why}"),
            Self::Done => f.write_str("done"),
        }
    }
}

/// Not a line that the guest says.
#[derive(Debug)]
pub(super) struct Unknown;

impl FromStr for Said {
    type Err = Unknown;

    fn from_str(line: &str) -> Result<Self, Unknown> {
        let (what, rest) = line.split_once(' ').unwrap_or((line, ""));
        let file = |name| File::named(name).ok_or(Unknown);
        Ok(match what {
            "synced" => Self::Synced(file(rest)?),
            "written" => Self::Written(file(rest)?),
            "found" => {
                let (name, found) = rest.split_once(' ').ok_or(Unknown)?;
                let found = Found::ALL.into_iter().find(|known| known.name() == found).ok_or(Unknown)?;
                Self::Found(file(name)?, found)
            }
            "unmountable" => Self::Unmountable(rest.into()),
            "failed" => Self::Failed(rest.into()),
            "done" if rest.is_empty() => Self::Done,
            _ => return Err(Unknown),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_said() {
        let said = [
            Said::Synced(FILES[0]),
            Said::Written(FILES[7]),
            Said::Found(FILES[2], Found::Damaged),
            Said::Unmountable("Structure needs cleaning (os error 117)".into()),
            Said::Failed("there is no /dev/vda".into()),
            Said::Done,
        ];
        for said in said {
            assert_eq!(said.to_string().parse::<Said>().ok(), Some(said));
        }
        for line in ["", "synced", "synced f9", "found f1", "found f1 whol", "done it", "Kernel panic"] {
            assert!(line.parse::<Said>().is_err(), "{line}");
        }
    }

    #[test]
    fn contents_fill_a_file_and_name_it() {
        let [first, second, ..] = FILES;
        assert_eq!(first.contents().len(), FILE_BYTES);
        assert_ne!(first.contents(), second.contents());
    }

    #[test]
    fn what_is_not_synced_is_written_last() {
        assert!(FILES.is_sorted_by_key(|file| !file.synced));
    }
}
