//! `defects.md` and `process.md` name, for each known defect, the tests that show that it is not here. The
//! names have to be those of tests that exist.

use std::collections::BTreeSet;
use std::path::Path;

/// The names of all functions in the Rust files below `folder`.
fn functions(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() && entry.file_name() != "target" {
            functions(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("a source file");
            let after_fn = text.split("fn ").skip(1);
            names.extend(after_fn.filter_map(|rest| rest.split(['(', '<']).next()).map(str::to_owned));
        }
    }
}

#[test]
fn every_test_that_the_list_of_defects_names_exists() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut known = BTreeSet::new();
    for name in ["blk-core", "ata-model", "scsi-model", "virtio-blk-model", "host-std"] {
        functions(&crates.join(name), &mut known);
    }
    let list = concat!(include_str!("defects.md"), include_str!("process.md"));
    let named: Vec<_> = list.split('`').skip(1).step_by(2).collect();
    assert!(named.len() > 60, "only {} tests are named", named.len());
    let missing: Vec<_> = named.iter().filter(|name| !known.contains(**name)).collect();
    assert!(missing.is_empty(), "no such tests: {missing:#?}");
}
