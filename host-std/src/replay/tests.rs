//! Recordings of a scripted disk, whose operations end when and as a test says.

mod against_sim;
mod cut;
mod lies;
mod runs;
mod scripted;
mod states;

use std::collections::BTreeSet;
use std::sync::Arc;

use super::medium::{BASE, Medium};
use super::{CrashStates, Log, Options, Positions};
use crate::recording::history::Content;
use scripted::{Bench, INITIAL};

/// Opens what a bench has recorded so far.
fn open(bench: &Bench) -> Arc<Log> {
    Arc::new(Log::open(bench.path()).unwrap())
}

/// What each of the first `sectors` sectors may hold at a position, one byte for each value.
fn allowed(log: &Arc<Log>, position: u64, sectors: u64) -> Vec<BTreeSet<u8>> {
    let mut medium = Medium::new(Arc::clone(log));
    medium.advance(position);
    (0..sectors)
        .map(|sector| {
            let run = medium.runs().get_prev(&sector).filter(|(_, run)| run.end > sector);
            let versions = run.map_or(vec![BASE], |(_, run)| run.versions.to_vec());
            versions.into_iter().map(|version| value(log, sector, version)).collect()
        })
        .collect()
}

fn value(log: &Log, sector: u64, version: crate::recording::history::ChangeId) -> u8 {
    if version == BASE {
        return INITIAL;
    }
    let change = log.history().change(version);
    let mut byte = [0];
    if let Content::Data(at) = change.content {
        log.read_data(at + (sector - change.extent.start.0) * 512, &mut byte).unwrap();
    }
    byte[0]
}

/// Every image of the first two sectors that the states at a position show.
fn images(bench: &Bench, log: &Arc<Log>, position: u64, most: usize) -> BTreeSet<[u8; 2]> {
    let options = Options {
        positions: Positions::At(position),
        states_per_position: most,
        base: Some(bench.base()),
        ..Options::default()
    };
    let states = CrashStates::open(log, &options).unwrap();
    let read = |state: super::CrashState| {
        let mut bytes = [0; 1024];
        state.image.read(0, &mut bytes).unwrap();
        let [first, second] = [&bytes[..512], &bytes[512..]];
        assert!(first.iter().all(|b| *b == first[0]) && second.iter().all(|b| *b == second[0]), "never torn");
        [first[0], second[0]]
    };
    states.map(read).collect()
}
