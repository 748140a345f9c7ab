//! Options that are given by a name, in a file as on a command line.

use blk_core::storage::CacheMode;

use crate::backend::IoEngine;

pub(super) fn cache(name: &str) -> Result<CacheMode, String> {
    let mode = CacheMode::ALL.into_iter().find(|mode| mode.name() == name);
    mode.ok_or_else(|| "give writeback, none, writethrough, directsync or unsafe".into())
}

pub(super) fn engine(name: &str) -> Result<IoEngine, String> {
    let engine = IoEngine::ALL.into_iter().find(|engine| engine.name() == name);
    engine.ok_or_else(|| "give auto, threads or uring".into())
}

/// The known word that was meant, most likely.
pub(super) fn near<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // As clap has it.
    const LIKE: f64 = 0.7;
    let alike = known.into_iter().map(|known| (strsim::jaro(word, known), known));
    alike.filter(|(likeness, _)| *likeness > LIKE).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, known)| known)
}
