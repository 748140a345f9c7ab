//! The fronts fit into firmware: no panic is linked, and code, state and stack are as `blk-core/FITNESS.md` says.
//!
//! ```text
//! programs   builds one program for each front and level
//! program    reads code, state and functions out of it
//! stack      the deepest path of its functions
//! table      what the page says
//! ```

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod program;
mod programs;
mod stack;
mod table;

use std::path::Path;

use programs::{LEVELS, build};
use table::Table;

/// The page, which `FITNESS=write` writes.
const PAGE: &str = "blk-core/FITNESS.md";

/// A panic that a front could reach is a symbol that there is not.
#[test]
fn no_front_links_a_panic_and_the_page_says_what_each_needs() {
    let measured = Table::measure(|level, fronts| build(level, fronts).expect("every front links"));
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join(PAGE);
    let text = std::fs::read_to_string(&page).expect("the page is there");
    if std::env::var_os("FITNESS").is_some_and(|value| value == "write") {
        std::fs::write(&page, measured.replace_in(&text)).expect("the page can be written");
        return;
    }
    let differences = measured.differences(&Table::parse(&text));
    assert!(
        differences.is_empty(),
        "{PAGE} says otherwise, by more than 3 %:\n{}\nIf this is as it should be: FITNESS=write cargo test -p host-std --test fitness",
        differences.join("\n")
    );
}

/// The check can fail.
#[test]
fn a_program_with_a_deliberate_panic_does_not_link() {
    for level in LEVELS {
        let refused = build(level, &["deliberate_panic"]).expect_err("it links");
        assert!(refused.contains("a_panic_is_linked"), "{refused}");
    }
}
