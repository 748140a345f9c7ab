//! The same operations on the crash explorer's disk: two models, written apart, allow the same images.

use std::collections::BTreeSet;

use blk_core::op::{Op, Segment};
use blk_core::sim::{DiskConfig, Fate, SimDisk, SimMemory, TRACKED, layout};
use blk_core::storage::{Cache, CacheMode, IoErrorKind, Storage as _};
use blk_core::units::{Extent, Tag};
use proptest::prelude::*;

use super::scripted::Bench;
use super::{allowed, images, open};

#[derive(Clone, Copy, Debug)]
enum Doing {
    Submit { handle: usize, op: Op, value: u8 },
    End { pick: usize, fails: bool },
    Poll { handle: usize },
}

fn op() -> impl Strategy<Value = Op> {
    let extent = (0..2_u64, 1..3_u64).prop_map(|(start, sectors)| Extent::new(start, sectors.min(2 - start)));
    let write =
        (extent.clone(), proptest::bool::weighted(0.2)).prop_map(|(extent, fua)| Op::Write { extent, fua });
    let zeroes = extent.clone().prop_map(|extent| Op::WriteZeroes { extent, may_unmap: true });
    let discard = extent.prop_map(|extent| Op::Discard { extent });
    prop_oneof![5 => write, 1 => zeroes, 1 => discard, 3 => Just(Op::Flush)]
}

fn doings() -> impl Strategy<Value = Vec<Doing>> {
    let one = prop_oneof![
        5 => (0..2_usize, op(), 1..60_u8).prop_map(|(handle, op, value)| Doing::Submit { handle, op, value }),
        5 => (0..8_usize, proptest::bool::weighted(0.05)).prop_map(|(pick, fails)| Doing::End { pick, fails }),
        2 => (0..2_usize).prop_map(|handle| Doing::Poll { handle }),
    ];
    proptest::collection::vec(one, 1..40)
}

/// Both disks, side by side.
struct Pair {
    bench: Bench,
    sim: SimDisk,
    memory: SimMemory,
    in_flight: Vec<(usize, Tag, Op)>,
    /// Ended, and in flight as far as the recording knows.
    unpolled: Vec<(usize, Tag, Op)>,
    /// Where the models differ on purpose, the explorer's allowing less: it knows the order in which operations in flight
    /// together took effect, and takes a discard to have zeroed.
    looser: bool,
    discarded: bool,
    latched: bool,
}

impl Pair {
    fn new(mode: CacheMode) -> Self {
        let config = DiskConfig { native_fua: true, handles: 2, depth: 64, ..DiskConfig::new(mode) };
        let cache = if mode == CacheMode::None { Cache::WriteBack } else { mode.cache() };
        Self {
            bench: Bench::new(cache),
            sim: SimDisk::new(&config),
            memory: SimMemory::new(),
            in_flight: Vec::new(),
            unpolled: Vec::new(),
            looser: false,
            discarded: false,
            latched: false,
        }
    }

    fn submit(&mut self, handle: usize, op: Op, value: u8) {
        if self.latched {
            return;
        }
        let tag = self.bench.submit(handle, op, value).unwrap();
        let len = op.extent().map_or(0, |extent| extent.bytes().unwrap() as u32);
        let segment = [Segment::Guest { addr: layout::source(value), len }];
        let segments = if matches!(op, Op::Write { .. }) { &segment[..] } else { &[] };
        let _ = self.sim.handles()[handle].submit(&self.memory, tag, op, segments).unwrap();
        let overlaps = |other: &Op| {
            let extents = op.extent().zip(other.extent());
            extents.is_some_and(|(a, b)| a.overlaps(b))
        };
        self.looser |= self.in_flight.iter().chain(&self.unpolled).any(|(_, _, other)| overlaps(other));
        if matches!(op, Op::Discard { .. }) {
            self.looser |= std::mem::replace(&mut self.discarded, true);
        }
        self.in_flight.push((handle, tag, op));
    }

    fn end(&mut self, pick: usize, fails: bool) -> Option<usize> {
        let pick = pick.checked_rem(self.in_flight.len())?;
        let (handle, tag, op) = self.in_flight.remove(pick);
        let index = self.in_flight[..pick].iter().filter(|(of, ..)| *of == handle).count();
        let fails = fails && self.sim.can_fail(handle, index);
        self.sim.complete(&self.memory, handle, index, if fails { Fate::Fails } else { Fate::Succeeds });
        let result = match (fails, self.latched) {
            (true, _) => Err(IoErrorKind::Medium),
            (false, true) => Err(IoErrorKind::Latched),
            (false, false) => Ok(()),
        };
        self.latched |= fails;
        self.bench.end(handle, tag, result);
        self.unpolled.push((handle, tag, op));
        Some(handle)
    }

    fn poll(&mut self, handle: usize) {
        let ours = self.bench.poll(handle);
        let theirs = self.sim.handles()[handle].poll(&self.memory);
        self.unpolled.retain(|(of, tag, _)| *of != handle || ours.is_none_or(|ours| ours.tag != *tag));
        assert_eq!(ours.map(|c| (c.tag, c.result.is_ok())), theirs.map(|c| (c.tag, c.result.is_ok())));
    }

    fn reachable(&self) -> Vec<BTreeSet<u8>> {
        (0..TRACKED).map(|sector| self.sim.reachable(sector).iter().collect()).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn both_models_allow_the_same_images(doings in doings(), mode in 0..5_usize, lazy in any::<bool>()) {
        let mut pair = Pair::new(CacheMode::ALL[mode]);
        for doing in doings {
            match doing {
                Doing::Submit { handle, op, value } => pair.submit(handle, op, value),
                Doing::End { pick, fails } => {
                    if let Some(handle) = pair.end(pick, fails).filter(|_| !lazy) {
                        pair.poll(handle);
                    }
                }
                Doing::Poll { handle } => pair.poll(handle),
            }
            let log = open(&pair.bench);
            let ours = allowed(&log, log.positions(), TRACKED as u64);
            let theirs = pair.reachable();
            // What has completed and was not polled yet is known to the simulated disk only.
            if pair.looser || pair.sim.has_unpolled() {
                for (ours, theirs) in ours.iter().zip(&theirs) {
                    prop_assert!(ours.is_superset(theirs), "{ours:?} lacks some of {theirs:?}");
                }
            } else {
                prop_assert_eq!(&ours, &theirs);
            }
            let product: BTreeSet<_> =
                ours[0].iter().flat_map(|&a| ours[1].iter().map(move |&b| [a, b])).collect();
            prop_assert_eq!(images(&pair.bench, &log, log.positions(), 10_000), product);
        }
    }
}
