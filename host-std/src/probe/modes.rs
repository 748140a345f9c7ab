//! Guarantee of each cache mode on a stack.

use blk_core::storage::CacheMode;

use super::report::{Layer, ModeReport, Possible, Verdict};
use super::system::{Direct, FileFacts, FileKind};

/// Judges every cache mode for the file `facts` on a stack of `layers` that is worth `stack` as a whole.
pub(super) fn judge(facts: &FileFacts, layers: &[Layer], stack: Verdict) -> Vec<ModeReport> {
    CacheMode::ALL.map(|mode| judge_one(mode, facts, layers, stack)).into()
}

fn judge_one(mode: CacheMode, facts: &FileFacts, layers: &[Layer], stack: Verdict) -> ModeReport {
    let possible = match (mode.direct(), facts.direct) {
        (false, _) | (true, Direct::Yes { .. }) => Possible::Yes,
        (true, Direct::No) => Possible::No,
        (true, Direct::Unknown) => Possible::Unknown,
    };
    if possible == Possible::No {
        let why = "O_DIRECT is not supported: the image cannot be opened".to_owned();
        return ModeReport::new(mode, possible, Verdict::Note, why);
    }
    if mode == CacheMode::Unsafe {
        let why = "flushes are ignored: declared to lose data in a power cut".to_owned();
        return ModeReport::new(mode, possible, Verdict::Unsafe, why);
    }
    let why = match (stack, worst(layers, stack)) {
        (Verdict::Unsafe | Verdict::Unknown, Some(reason)) => format!("{}, but {reason}", keeps(mode, facts)),
        _ => keeps(mode, facts),
    };
    ModeReport::new(mode, possible, stack, why)
}

/// How a mode makes a guest's data stable.
fn keeps(mode: CacheMode, facts: &FileFacts) -> String {
    let flush = match facts.kind {
        FileKind::Block(_) => "flushes the device",
        _ => "commits the file and flushes the disk",
    };
    match mode {
        CacheMode::WriteThrough => format!("every write {flush} before it completes"),
        CacheMode::DirectSync => {
            format!("every write bypasses the page cache and {flush}, or is FUA, before it completes")
        }
        CacheMode::WriteBack => format!("a guest's flush {flush}"),
        CacheMode::None => {
            format!("writes bypass the page cache into the disk's own, and a guest's flush {flush}")
        }
        CacheMode::Unsafe => "nothing is kept".to_owned(),
    }
}

/// The first finding that is as bad as the whole stack.
fn worst(layers: &[Layer], stack: Verdict) -> Option<String> {
    layers.iter().find_map(|layer| {
        let finding = layer.findings.iter().find(|finding| finding.verdict == stack)?;
        Some(format!("{} {}: {}", layer.kind.name(), layer.name, finding.what))
    })
}
