//! The page of embeddings shows the programs that are compiled, and each is as short as it says.

use std::path::Path;

const PAGE: &str = "blk-core/EMBEDDING.md";
const PROGRAMS: [&str; 3] = [
    "host-std/examples/vmm.rs",
    "virtio-blk-model/examples/hypervisor.rs",
    "virtio-blk-model/examples/firmware.rs",
];
/// What a program may have, without blank lines, comments and imports.
const LINES_MAX: usize = 60;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The code of a program, from its first import on: what is before it tells how to run it.
fn code(program: &str) -> String {
    let text = read(program);
    let lines = text.lines().skip_while(|line| line.starts_with("//!") || line.is_empty());
    lines.collect::<Vec<_>>().join("\n")
}

/// `EMBEDDING=write` writes them.
#[test]
fn the_page_shows_the_programs_that_are_compiled() {
    let page = read(PAGE);
    let mut blocks = page.split("```rust,ignore\n");
    let mut written = String::from(blocks.next().expect("a beginning"));
    let blocks: Vec<_> = blocks.map(|block| block.split_once("\n```\n").expect("an end")).collect();
    assert_eq!(blocks.len(), PROGRAMS.len());
    for (program, (_, after)) in PROGRAMS.iter().zip(&blocks) {
        written += &format!("```rust,ignore\n{}\n```\n{after}", code(program));
    }
    if std::env::var_os("EMBEDDING").is_some_and(|value| value == "write") {
        std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(PAGE), written)
            .expect("written");
    } else {
        assert!(
            page == written,
            "{PAGE} shows other programs: EMBEDDING=write cargo test -p host-std --test embedding"
        );
    }
}

#[test]
fn each_program_is_as_short_as_the_page_says() {
    for program in PROGRAMS {
        let code = code(program);
        let import = |line: &str| ["use ", "mod ", "#[path"].iter().any(|start| line.starts_with(start));
        let lines = code.lines().filter(|line| !line.trim_start().starts_with("//") && !line.is_empty());
        let lines = lines.filter(|line| !import(line)).count();
        assert!((20..=LINES_MAX).contains(&lines), "{program}: {lines} lines");
    }
}
