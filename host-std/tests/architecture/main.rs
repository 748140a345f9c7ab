//! The architecture, as data, and the check that the sources keep to it.
//!
//! Every `.rs` file below a crate's `src/` is read. One that names an item of another has an **arrow** to it (`arrows`), and
//!
//! - no file knows one that knows it, be it by way of others: there are no **circles**;
//! - a file knows only what lies on a lower **floor** ([`CRATES`]), or in its own room.
//!
//! So what is lower can be read, tested and simulated without what is higher. Modules for tests do not count.
//!
//! `cargo test -p host-std --test architecture -- --nocapture` prints the floors of each crate's files.

mod arrows;
mod graph;
mod source;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use arrows::{Arrows, arrows};
use graph::Graph;
use source::Source;

/// A crate or a program.
struct Crate {
    folder: &'static str,
    root: &'static str,
    /// From the top down. A floor has rooms: modules, each with all that is below it and has no room of its own. Rooms of one
    /// floor do not know each other. The root module has the name "".
    floors: &'static [&'static [&'static str]],
}

/// All crates. That models know `blk-core` only, and `host-std` all of them, the manifests say.
const CRATES: &[Crate] = &[
    Crate {
        folder: "blk-core",
        root: "src/lib.rs",
        floors: &[
            &["", "io_medium", "sim"],
            &["ram"],
            &["virtio"],
            &["atomic_memory", "shared_device", "order", "latch", "sync", "virtq", "pci"],
            &["snapshot"],
            &["bus", "memory", "storage"],
            &["mutant", "op"],
            &["log", "units"],
        ],
    },
    Crate {
        folder: "ata-model",
        root: "src/lib.rs",
        floors: &[&["", "sim"], &["front"], &["drive"], &["command"], &["wire"]],
    },
    Crate {
        folder: "scsi-model",
        root: "src/lib.rs",
        floors: &[
            &["", "sim"],
            &["front"],
            &["disk"],
            &["task_set"],
            &["command"],
            &["sense"],
            &["config", "fifo", "transport", "wire"],
        ],
    },
    Crate {
        folder: "virtio-blk-model",
        root: "src/lib.rs",
        floors: &[
            &["", "sim"],
            &["front"],
            &["device"],
            &["control"],
            &["queue"],
            &["chain", "command"],
            &["wire"],
        ],
    },
    Crate {
        folder: "host-std",
        root: "src/lib.rs",
        floors: &[
            &["", "testing", "proof", "serve", "trace"],
            &["server"],
            &["server::vhost_user", "server::vfio_user"],
            &["server::queue"],
            &["server::virtio"],
            &["server::vring"],
            &["server::lifecycle", "server::mailbox"],
            &[
                "server::client_fd",
                "server::interrupt",
                "server::mapping",
                "server::notify",
                "server::options",
            ],
            &["server::images", "server::mutant", "server::stats"],
            &["fault", "probe", "record", "replay", "throttle"],
            &["confine"],
            &["recording"],
            &["backend"],
            &["timed_wake"],
            &["memory", "mutex", "wake"],
        ],
    },
    Crate {
        folder: "host-std",
        root: "program/main.rs",
        floors: &[
            &[""],
            &["report"],
            &["completions", "ctl", "demo", "man", "table"],
            &["metrics"],
            &["cli"],
            &["replay"],
            &["exit", "number", "output", "temporary"],
        ],
    },
];

/// Circles that are still to be opened, and arrows to be turned round: those all of whose files lie below the places
/// of one entry, which are set apart by spaces.
const CIRCLES_TO_OPEN: &[&str] = &[];

impl Crate {
    fn read(&self) -> (Source, Arrows) {
        let source = Source::read(&workspace().join(self.folder), self.root);
        let arrows = arrows(&source);
        (source, arrows)
    }

    /// The room of a file: its floor, counted from the top, and its name.
    fn room(&self, source: &Source, file: usize) -> Option<(usize, &'static str)> {
        let module = &source.modules.iter().find(|module| module.file == file)?.name;
        let holds = |room: &str| match module.strip_prefix(room) {
            Some(rest) => rest.is_empty() || (!room.is_empty() && rest.starts_with("::")),
            None => false,
        };
        let floors = self.floors.iter().enumerate();
        let rooms = floors.flat_map(|(floor, rooms)| rooms.iter().map(move |&room| (floor, room)));
        rooms.filter(|(_, room)| holds(room)).max_by_key(|(_, room)| room.len())
    }

    fn path(&self, source: &Source, file: usize) -> String {
        format!("{}/{}", self.folder, source.files[file].display())
    }

    /// The entry of [`CIRCLES_TO_OPEN`] that excuses these files.
    fn to_open(&self, source: &Source, files: &[usize]) -> Option<&'static str> {
        let covered = |places: &str, file: usize| {
            places.split(' ').any(|place| self.path(source, file).starts_with(place))
        };
        CIRCLES_TO_OPEN.iter().copied().find(|places| files.iter().all(|&file| covered(places, file)))
    }

    fn arrow(&self, source: &Source, (from, to): (usize, usize), names: &BTreeSet<String>) -> String {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        format!("{} -> {}: {}", self.path(source, from), self.path(source, to), names.join(", "))
    }
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace")
}

#[test]
fn no_file_knows_one_that_knows_it() {
    let mut text = String::new();
    let mut excused = BTreeSet::new();
    for one in CRATES {
        let (source, arrows) = one.read();
        let graph = Graph::new(source.files.len(), &arrows);
        println!("\n{}/{}, from the top floor down", one.folder, one.root);
        for (floor, files) in graph.floors.iter().enumerate().rev() {
            let shipped = files.iter().filter(|&&file| !source.is_test(file));
            let files: Vec<String> = shipped.map(|&file| source.files[file].display().to_string()).collect();
            println!("{floor:4}  {}", files.join(" "));
        }
        for circle in &graph.circles {
            if let Some(places) = one.to_open(&source, circle) {
                excused.insert(places);
                continue;
            }
            let _ = writeln!(text, "{} files:", circle.len());
            for (&(from, to), names) in &arrows {
                if circle.contains(&from) && circle.contains(&to) {
                    let _ = writeln!(text, "  {}", one.arrow(&source, (from, to), names));
                }
            }
        }
    }
    assert!(text.is_empty(), "circles; move what ties them into a file below all that use it\n{text}");
    for places in CIRCLES_TO_OPEN {
        assert!(excused.contains(places), "{places} has no circle any more: take it off CIRCLES_TO_OPEN");
    }
}

#[test]
fn a_file_knows_only_lower_floors_and_its_own_room() {
    let mut text = String::new();
    for one in CRATES {
        let (source, arrows) = one.read();
        for (&(from, to), names) in &arrows {
            match (one.room(&source, from), one.room(&source, to)) {
                (Some((upper, _)), Some((lower, _))) if upper < lower => {}
                (Some(from), Some(to)) if from == to => {}
                _ if one.to_open(&source, &[from, to]).is_some() => {}
                (Some(_), Some(_)) => {
                    let _ = writeln!(text, "  {}", one.arrow(&source, (from, to), names));
                }
                _ => {
                    let _ = writeln!(text, "  no room: {}", one.arrow(&source, (from, to), names));
                }
            }
        }
    }
    assert!(text.is_empty(), "arrows up, or between rooms of one floor:\n{text}");
}

/// What is not read is not checked: a file that is there and belongs to no module would be one.
#[test]
fn every_file_is_a_module_of_its_crate() {
    let mut read = BTreeSet::new();
    let mut there = BTreeSet::new();
    for one in CRATES {
        let folder = workspace().join(one.folder);
        let (source, _) = one.read();
        read.extend(source.files.iter().map(|file| folder.join(file)));
        rust_files(&folder.join("src"), &mut there);
    }
    assert_eq!(there.difference(&read).collect::<Vec<_>>(), Vec::<&PathBuf>::new());
    assert!(there.len() > 100, "{} files", there.len());
}

fn rust_files(folder: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.insert(path);
        }
    }
}

/// Reads a crate made of these files, and tells its arrows and the sizes of its circles.
fn read(files: &[(&str, &str)]) -> (Vec<String>, Vec<usize>) {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    }
    let source = Source::read(folder.path(), "lib.rs");
    let arrows = arrows(&source);
    let name = |file: usize| source.files[file].display();
    let tell = |(&(from, to), names): (&(usize, usize), &BTreeSet<String>)| {
        format!("{} {} {}", name(from), name(to), names.iter().cloned().collect::<Vec<_>>().join(","))
    };
    let circles = Graph::new(source.files.len(), &arrows).circles;
    (arrows.iter().map(tell).collect(), circles.iter().map(Vec::len).collect())
}

#[test]
fn an_arrow_leads_past_re_exports_to_the_file_that_defines_the_name() {
    let files = [
        ("lib.rs", "pub mod room; mod user;"),
        ("room/mod.rs", "mod a; mod b; pub use a::{A as Renamed, *}; pub(crate) use b::B;"),
        ("room/a.rs", "use super::B; pub struct A(B); pub struct Star;"),
        ("room/b.rs", "pub struct B;"),
        ("user.rs", "use crate::room::{self, Renamed}; type T = (Renamed, room::Star, crate::room::B);"),
    ];
    let arrows = ["room/a.rs room/b.rs B", "user.rs room/a.rs A,Star", "user.rs room/b.rs B"];
    assert_eq!(read(&files), (arrows.map(String::from).to_vec(), vec![]));
}

#[test]
fn a_parent_whose_items_its_child_uses_is_in_a_circle_with_it() {
    let files = [
        ("lib.rs", "mod parent;"),
        ("parent.rs", "mod child; use child::Child; pub struct Parent(Child);"),
        ("parent/child.rs", "pub struct Child; impl From<super::Parent> for Child {}"),
    ];
    let arrows = ["parent.rs parent/child.rs Child", "parent/child.rs parent.rs Parent"];
    assert_eq!(read(&files), (arrows.map(String::from).to_vec(), vec![2]));
}

#[test]
fn what_only_tests_use_is_no_arrow_and_what_a_macro_uses_is_one() {
    let files = [
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a.rs", "made! { pub struct Made; } #[cfg(test)] mod tests { use crate::b::f; }"),
        ("b.rs", "pub fn f() { println!(\"{}\", [1 + crate::a::Made::ONE.value]); }"),
        ("c.rs", "use crate::b; macro_rules! call { ($name:ident) => { b::$name() } }"),
    ];
    let arrows = ["b.rs a.rs Made", "c.rs b.rs $"];
    assert_eq!(read(&files), (arrows.map(String::from).to_vec(), vec![]));
}
