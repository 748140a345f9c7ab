//! The pages that a stranger reads: they fit the eye, their links lead somewhere, and their commands are those of today.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What the front page may be.
const LINES_MAX: usize = 160;
const COLUMNS_MAX: usize = 100;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The pages, by the folder that they are in.
fn pages() -> Vec<PathBuf> {
    let folders =
        ["", "blk-core", "ata-model", "scsi-model", "virtio-blk-model", "host-std", "host-std/tests"];
    let entries =
        folders.into_iter().flat_map(|folder| std::fs::read_dir(root().join(folder)).expect("a folder"));
    let paths = entries.flatten().map(|entry| entry.path());
    let pages: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect();
    assert!(pages.len() > 10, "{pages:?}");
    pages
}

/// Lines of code in a fenced block of a language.
fn code(page: &str, language: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        match line.strip_prefix("```") {
            Some(after) => inside = !inside && after == language,
            // A line goes on after a backslash.
            None if inside => match lines.last_mut().filter(|last| last.ends_with('\\')) {
                Some(last) => {
                    last.pop();
                    last.push_str(line.trim_start());
                }
                None => lines.push(line.to_owned()),
            },
            None => {}
        }
    }
    lines
}

#[test]
fn the_front_page_fits_the_eye() {
    let page = read(&root().join("README.md"));
    let lines = page.lines().count();
    assert!(lines <= LINES_MAX, "{lines} lines");
    let wide: Vec<_> = page.lines().filter(|line| line.chars().count() > COLUMNS_MAX).collect();
    // A picture's line cannot be broken.
    let wide: Vec<_> = wide.into_iter().filter(|line| !line.starts_with("![")).collect();
    assert!(wide.is_empty(), "{wide:#?}");
}

/// `[text](target)`, where the target is in the repository.
#[test]
fn every_link_leads_to_a_file_or_a_heading() {
    let mut checked = 0;
    for page in pages() {
        let text = read(&page);
        let folder = page.parent().expect("a folder");
        let inline = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let defined =
            text.lines().filter(|line| line.starts_with('[')).filter_map(|line| line.split_once("]: "));
        for target in inline.chain(defined.map(|(_, target)| target)) {
            if target.contains("://") || target.contains("::") || target.contains(' ') || target.contains('`')
            {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() { page.clone() } else { folder.join(file) };
            // Names of Rust items, which rustdoc checks.
            let is_item = !file.contains(['.', '/']) && heading.is_empty();
            if is_item && !path.exists() {
                continue;
            }
            assert!(path.exists(), "{}: {target}", page.display());
            if !heading.is_empty() {
                let headings: BTreeSet<_> = read(&path).lines().filter_map(anchor).collect();
                assert!(headings.contains(heading), "{}: {target} of {headings:?}", page.display());
            }
            checked += 1;
        }
    }
    assert!(checked > 20, "{checked} links");
}

/// What a repository's pages call a heading.
fn anchor(line: &str) -> Option<String> {
    let text = line.strip_prefix('#')?.trim_start_matches('#').trim();
    let kept = text.to_lowercase();
    let kept = kept.chars().filter(|char| char.is_alphanumeric() || matches!(char, ' ' | '-' | '_'));
    Some(kept.collect::<String>().replace(' ', "-"))
}

/// `serve` checks its options before it opens anything, and with --print-attach does no more.
#[test]
fn the_options_of_every_serve_command_are_those_of_today() {
    let mut checked = 0;
    for page in pages() {
        for line in code(&read(&page), "console") {
            let command = line.split(" #").next().unwrap_or_default();
            let Some(arguments) = command.strip_prefix("$ blk-host serve ") else { continue };
            let mut command = Command::new(env!("CARGO_BIN_EXE_blk-host"));
            command.args(["serve", "--print-attach"]).args(arguments.split_whitespace()).stdin(Stdio::null());
            let output = command.output().expect("the program runs");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}: {line}: {said}", page.display());
            checked += 1;
        }
    }
    assert!(checked >= 2, "{checked} commands");
}

/// Tests, benchmarks and examples that a page names.
#[test]
fn every_cargo_command_names_what_there_is() {
    let manifests = ["blk-core", "ata-model", "scsi-model", "virtio-blk-model", "host-std"];
    let there = |kind: &str, name: &str| {
        manifests.iter().any(|member| {
            let folder = root().join(member).join(kind);
            folder.join(format!("{name}.rs")).exists() || folder.join(name).join("main.rs").exists()
        })
    };
    let mut checked = 0;
    for page in pages() {
        for line in code(&read(&page), "console") {
            let words: Vec<_> = line.split_whitespace().collect();
            for pair in words.windows(2) {
                let kind = match pair[0] {
                    "--test" => "tests",
                    "--bench" => "benches",
                    "--example" => "examples",
                    _ => continue,
                };
                assert!(there(kind, pair[1]), "{}: {line}", page.display());
                checked += 1;
            }
        }
    }
    assert!(checked > 5, "{checked} names");
}
