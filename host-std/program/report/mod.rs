//! `blk-host report`: the integrity table as one HTML file, to be looked at in a browser.
//!
//! It holds its style and its pictures, asks for nothing from a network and runs no script: what opens and closes is the browser's
//! own (`popover`, `details`). The page is made from what `--json` prints.

mod cell;
mod diagram;
mod file;
mod grid;
mod limits;
mod page;
mod speed;

use std::path::Path;

use anyhow::Context as _;
use serde::de::DeserializeOwned;

use crate::cli::ReportArgs;
use crate::table::Table;

/// Writes the page. The table is read from `--json FILE`, or comes from `run`.
pub(crate) fn write(args: &ReportArgs, run: impl FnOnce() -> anyhow::Result<Table>) -> anyhow::Result<Table> {
    // Before a minute is spent.
    file::check(&args.out)?;
    let bench = args.bench.as_deref().map(|path| read("--bench", path, "the bench `serve` with --json"));
    let bench: Option<speed::Bench> = bench.transpose()?;
    let table = match &args.json {
        Some(path) => read("--json", path, "this version's `blk-host --json`")?,
        None => run()?,
    };
    let page = page::page(&table, bench.as_ref()).into_string();
    file::write(&args.out, &page)?;
    Ok(table)
}

/// What another run has printed.
fn read<T: DeserializeOwned>(option: &str, path: &Path, source: &str) -> anyhow::Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{option} {}", path.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("{option} {}: not what {source} prints", path.display()))
}
