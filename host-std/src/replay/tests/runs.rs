//! Runs that are split and joined, against the formula applied to each sector by itself.

use std::collections::BTreeSet;

use blk_core::op::Op;
use blk_core::storage::{Cache, Info, IoErrorKind};
use blk_core::units::Extent;
use fastrand::Rng;

use super::open;
use super::scripted::{Bench, SECTORS, fua, info, write};
use crate::recording::history::{ChangeId, Content};
use crate::replay::medium::{BASE, Medium, is_zero};

/// `{ v submitted by t : no w that is stable by t has end(v) < submission(w) }`
fn by_the_formula(log: &crate::replay::Log, position: u64, sector: u64) -> BTreeSet<ChangeId> {
    let changes = &log.history().changes;
    let here: Vec<_> = (0..)
        .zip(changes)
        .filter(|(_, change)| change.extent.overlaps(Extent::new(sector, 1)) && change.submitted < position)
        .collect();
    let superseded = |end: Option<u64>| {
        here.iter().any(|(_, w)| {
            w.content != Content::Discarded
                && w.stable.is_some_and(|at| at < position)
                && end.is_none_or(|end| end < w.submitted)
        })
    };
    let base = (!superseded(None)).then_some(BASE);
    here.iter().filter(|(_, v)| !superseded(Some(v.end.at()))).map(|(id, _)| *id).chain(base).collect()
}

/// The versions that hold data, and `None` for all that are zeroes.
fn contents(log: &crate::replay::Log, versions: &BTreeSet<ChangeId>) -> BTreeSet<Option<ChangeId>> {
    versions.iter().map(|&version| (!is_zero(log, version)).then_some(version)).collect()
}

#[test]
fn every_sector_of_a_run_is_what_the_formula_says() {
    for seed in 0..20 {
        let cache = [Cache::WriteBack, Cache::WriteThrough, Cache::Unsafe][seed as usize % 3];
        let mut rng = Rng::with_seed(seed);
        let mut bench = Bench::with(Info { fua: true, discard: true, ..info(cache) });
        let mut in_flight = Vec::new();
        for _ in 0..120 {
            let start = rng.u64(..SECTORS);
            let sectors = rng.u64(1..=40.min(SECTORS - start));
            let extent = Extent::new(start, sectors);
            let op = match rng.u8(..12) {
                0..6 => write(start, sectors),
                6 => fua(start, sectors),
                7 => Op::WriteZeroes { extent, may_unmap: true },
                8 => Op::Discard { extent },
                _ => Op::Flush,
            };
            let handle = rng.usize(..2);
            in_flight.push((handle, bench.submit(handle, op, 1).unwrap()));
            while in_flight.len() > rng.usize(..4) {
                let (handle, tag) = in_flight.swap_remove(rng.usize(..in_flight.len()));
                let result = if rng.u8(..20) == 0 { Err(IoErrorKind::Medium) } else { Ok(()) };
                bench.end(handle, tag, result);
                bench.poll(handle).unwrap();
            }
        }
        let log = open(&bench);
        let mut medium = Medium::new(log.clone());
        for position in 0..=log.positions() {
            medium.advance(position);
            let mut end = 0;
            for (start, run) in medium.runs() {
                assert!(end <= *start && *start < run.end, "runs do not overlap");
                end = run.end;
            }
            let open: Vec<_> = medium.open().map(|(sectors, _)| sectors).collect();
            for sector in 0..SECTORS {
                let run = medium.runs().get_prev(&sector).filter(|(_, run)| run.end > sector);
                let versions =
                    run.map_or(BTreeSet::from([BASE]), |(_, run)| run.versions.iter().copied().collect());
                let expected = by_the_formula(&log, position, sector);
                let is_open = open.iter().any(|sectors| sectors.contains(&sector));
                assert_eq!(is_open, versions.len() > 1, "seed {seed}, position {position}, sector {sector}");
                // A discard of what is zero anyhow need not be told from it.
                let [versions, expected] = [versions, expected].map(|set| contents(&log, &set));
                assert_eq!(versions, expected, "seed {seed}, position {position}, sector {sector}");
            }
        }
    }
}
