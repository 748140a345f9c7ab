//! The physics of each mode, and that the disk never knows more than a real one.

use std::vec;

use proptest::prelude::*;

use super::*;
use crate::memory::GuestMemory;
use crate::op::Segment;
use crate::sim::guest::layout;
use crate::sim::value::ZEROES;
use crate::sim::value::{GARBAGE, written_by};
use crate::storage::{IoErrorKind, Storage, Submission};
use crate::units::Tag;
use crate::units::{Extent, GuestAddr};

const A: u8 = written_by(0);
const B: u8 = written_by(1);
const FIRST: Extent = Extent::new(0, 1);
const WRITE: Op = Op::Write { extent: FIRST, fua: false };
const FUA: Op = Op::Write { extent: FIRST, fua: true };

struct Bench {
    memory: SimMemory,
    disk: SimDisk,
    tags: u16,
}

impl Bench {
    fn new(config: DiskConfig) -> Self {
        Self { memory: SimMemory::new(), disk: SimDisk::new(&config), tags: 0 }
    }

    fn mode(mode: CacheMode) -> Self {
        Self::new(DiskConfig::new(mode))
    }

    fn submit(&mut self, handle: usize, op: Op, value: u8) -> Tag {
        self.tags += 1;
        let tag = Tag { slot: self.tags % 8, generation: self.tags };
        let segment = Segment::Guest {
            addr: layout::source(value),
            len: op.extent().map_or(0, |extent| extent.bytes().unwrap() as u32),
        };
        let segments = if matches!(op, Op::Write { .. }) { &[segment][..] } else { &[] };
        self.disk.handles()[handle].submit(&self.memory, tag, op, segments).map(drop).unwrap();
        tag
    }

    fn complete(&mut self, tag: Tag, fate: Fate) {
        let found = self.disk.shared.borrow().in_flight.iter().enumerate().find_map(|(handle, in_flight)| {
            in_flight.iter().position(|pending| pending.tag == tag).map(|index| (handle, index))
        });
        let (handle, index) = found.unwrap();
        self.disk.complete(&self.memory, handle, index, fate);
    }

    fn poll(&mut self, handle: usize) -> Option<Result<(), IoErrorKind>> {
        let completion = self.disk.handles()[handle].poll(&self.memory)?;
        Some(completion.result.map_err(|error| error.kind))
    }

    /// Submits, completes and polls.
    fn run(&mut self, op: Op, value: u8) -> Result<(), IoErrorKind> {
        let tag = self.submit(0, op, value);
        self.complete(tag, Fate::Succeeds);
        self.poll(0).unwrap()
    }

    fn fail(&mut self, op: Op, value: u8) -> Result<(), IoErrorKind> {
        let tag = self.submit(0, op, value);
        self.complete(tag, Fate::Fails);
        self.poll(0).unwrap()
    }

    #[track_caller]
    fn can_hold(&self, values: &[u8]) {
        let expected = values.iter().fold(ValueSet::EMPTY, |set, &value| set.with(ValueSet::of(value)));
        assert_eq!(self.disk.reachable(0), expected);
    }
}

#[test]
fn what_a_completed_write_is_worth_depends_on_the_mode() {
    use CacheMode::{DirectSync, None, Unsafe, WriteBack, WriteThrough};
    for (mode, stable, flushed) in [
        (WriteThrough, true, true),
        (WriteBack, false, true),
        (None, false, true),
        (DirectSync, true, true),
        (Unsafe, false, false),
    ] {
        let mut bench = Bench::mode(mode);
        let tag = bench.submit(0, WRITE, A);
        bench.can_hold(&[INITIAL, A]);
        assert_eq!(bench.disk.live(0), INITIAL);
        bench.complete(tag, Fate::Succeeds);
        assert_eq!((bench.disk.live(0), bench.poll(0)), (A, Some(Ok(()))));
        bench.can_hold(if stable { &[A] } else { &[INITIAL, A] });
        bench.run(Op::Flush, 0).unwrap();
        bench.can_hold(if flushed { &[A] } else { &[INITIAL, A] });
    }
}

#[test]
fn zeroes_and_discards_are_volatile_even_under_o_dsync() {
    for (op, flushed) in [
        (Op::WriteZeroes { extent: FIRST, may_unmap: false }, &[ZEROES][..]),
        (Op::Discard { extent: FIRST }, &[INITIAL, ZEROES]),
    ] {
        let mut bench = Bench::mode(CacheMode::WriteThrough);
        bench.run(op, 0).unwrap();
        bench.can_hold(&[INITIAL, ZEROES]);
        bench.run(Op::Flush, 0).unwrap();
        bench.can_hold(flushed);
        bench.run(WRITE, A).unwrap();
        bench.can_hold(&[A]);
    }
}

// host-std/tests/defects.md, 13.
#[test]
fn a_flush_covers_what_was_polled_before_it_was_submitted_on_any_handle() {
    let mut bench = Bench::new(DiskConfig { handles: 2, ..DiskConfig::new(CacheMode::WriteBack) });
    let write = bench.submit(0, WRITE, A);
    bench.complete(write, Fate::Succeeds);
    let early = bench.submit(1, Op::Flush, 0);
    bench.poll(0).unwrap().unwrap();
    bench.complete(early, Fate::Succeeds);
    bench.can_hold(&[INITIAL, A]);
    let flush = bench.submit(1, Op::Flush, 0);
    let later = bench.submit(0, WRITE, B);
    bench.complete(later, Fate::Succeeds);
    bench.complete(flush, Fate::Succeeds);
    bench.can_hold(&[A, B]);
}

#[test]
fn of_two_flushes_that_cover_the_same_write_the_second_settles_nothing_younger() {
    let mut bench = Bench::mode(CacheMode::WriteBack);
    bench.run(WRITE, A).unwrap();
    let flushes = [bench.submit(0, Op::Flush, 0), bench.submit(0, Op::Flush, 0)];
    bench.run(WRITE, B).unwrap();
    for flush in flushes {
        bench.complete(flush, Fate::Succeeds);
        bench.can_hold(&[A, B]);
    }
}

#[test]
fn native_fua_is_stable_and_elsewhere_refused() {
    let mut bench = Bench::new(DiskConfig { native_fua: true, ..DiskConfig::new(CacheMode::None) });
    bench.run(WRITE, B).unwrap();
    bench.run(FUA, A).unwrap();
    bench.can_hold(&[A]);
    let mut bench = Bench::mode(CacheMode::None);
    assert_eq!(bench.run(FUA, A), Err(IoErrorKind::Unsupported), "no flag is silently ignored");
    bench.can_hold(&[INITIAL]);
}

#[test]
fn a_failed_flush_latches_and_reads_go_on() {
    let mut bench = Bench::mode(CacheMode::WriteBack);
    bench.run(WRITE, A).unwrap();
    let beside = bench.submit(0, WRITE, B);
    assert_eq!(bench.fail(Op::Flush, 0), Err(IoErrorKind::Medium));
    bench.can_hold(&[INITIAL, A, B]);
    bench.complete(beside, Fate::Succeeds);
    assert_eq!(bench.poll(0), Some(Err(IoErrorKind::Latched)), "tested at completion");
    assert_eq!(bench.run(Op::Flush, 0), Err(IoErrorKind::Latched));
    assert_eq!(bench.run(WRITE, A), Err(IoErrorKind::Latched));
    assert_eq!(bench.disk.live(0), A);
    bench.can_hold(&[INITIAL, A, B]);
    let segment = Segment::Guest { addr: layout::sink(0), len: 512 };
    let _ = bench.disk.handles()[0]
        .submit(&bench.memory, Tag::default(), Op::Read { extent: FIRST }, &[segment])
        .unwrap();
    bench.complete(Tag::default(), Fate::Succeeds);
    assert_eq!(bench.poll(0), Some(Ok(())));
}

#[test]
fn a_failed_durable_write_latches_and_may_have_landed() {
    let mut bench = Bench::mode(CacheMode::DirectSync);
    assert_eq!(bench.fail(WRITE, A), Err(IoErrorKind::Medium));
    bench.can_hold(&[INITIAL, A]);
    assert_eq!(bench.run(WRITE, B), Err(IoErrorKind::Latched));
    bench.can_hold(&[INITIAL, A]);
}

#[test]
fn data_goes_through_segments_of_any_length_and_through_staging() {
    let mut bench = Bench::mode(CacheMode::WriteBack);
    let both = Extent::new(0, 2);
    let handle = &mut bench.disk.handles()[0];
    handle.staging(3)[..512].fill(A);
    handle.staging(3)[512..].fill(B);
    let tag = Tag { slot: 3, generation: 1 };
    let staged = [Segment::Staging { offset: 0, len: 700 }, Segment::Staging { offset: 700, len: 324 }];
    let _ = handle.submit(&bench.memory, tag, Op::Write { extent: both, fua: false }, &staged).unwrap();
    assert!(handle.staging(3).is_empty(), "in use");
    bench.complete(tag, Fate::Succeeds);
    bench.poll(0).unwrap().unwrap();
    assert_eq!((bench.disk.live(0), bench.disk.live(1)), (A, B));

    let pieces = [
        Segment::Guest { addr: layout::sink(0), len: 100 },
        Segment::Guest { addr: GuestAddr(layout::sink(0).0 + 100), len: 924 },
    ];
    let _ = bench.disk.handles()[0].submit(&bench.memory, tag, Op::Read { extent: both }, &pieces).unwrap();
    bench.complete(tag, Fate::Succeeds);
    let mut bytes = [0; 1024];
    bench.memory.read(layout::sink(0), &mut bytes).unwrap();
    assert_eq!((&bytes[..512], &bytes[512..]), (&[A; 512][..], &[B; 512][..]));
}

#[test]
fn what_does_not_fit_is_refused_and_what_is_not_one_value_is_garbage() {
    let mut bench = Bench::mode(CacheMode::WriteBack);
    let outside = Op::WriteZeroes { extent: Extent::new(127, 2), may_unmap: false };
    assert_eq!(bench.run(outside, 0), Err(IoErrorKind::OutOfRange));
    assert!(!bench.disk.strayed());
    bench.run(Op::WriteZeroes { extent: Extent::new(127, 1), may_unmap: false }, 0).unwrap();
    assert!(bench.disk.strayed());

    let tag = Tag::default();
    let mixed = [
        Segment::Guest { addr: layout::source(A), len: 256 },
        Segment::Guest { addr: layout::source(B), len: 256 },
    ];
    bench.disk.handles()[0].submit(&bench.memory, tag, WRITE, &mixed).map(drop).unwrap();
    bench.can_hold(&[INITIAL, GARBAGE]);
    let short =
        bench.disk.handles()[0].submit(&bench.memory, Tag { slot: 1, generation: 1 }, WRITE, &mixed[..1]);
    assert_eq!(short, Ok(Submission::Pending));
    bench.complete(Tag { slot: 1, generation: 1 }, Fate::Succeeds);
    assert_eq!(bench.poll(0), Some(Err(IoErrorKind::OutOfRange)));
}

#[test]
fn a_full_handle_is_busy_until_a_completion_is_polled() {
    let mut bench = Bench::new(DiskConfig { depth: 1, ..DiskConfig::new(CacheMode::WriteBack) });
    let tag = bench.submit(0, Op::Flush, 0);
    let next = Tag { slot: 7, generation: 9 };
    assert!(bench.disk.handles()[0].submit(&bench.memory, next, Op::Flush, &[]).is_err());
    bench.complete(tag, Fate::Succeeds);
    assert!(bench.disk.handles()[0].submit(&bench.memory, next, Op::Flush, &[]).is_err());
    bench.poll(0).unwrap().unwrap();
    assert!(bench.disk.handles()[0].submit(&bench.memory, next, Op::Flush, &[]).is_ok());
}

#[test]
fn a_clone_is_another_disk() {
    let mut bench = Bench::mode(CacheMode::WriteBack);
    let before = bench.disk.clone();
    bench.run(WRITE, A).unwrap();
    assert_eq!((before.live(0), bench.disk.live(0)), (INITIAL, A));
}

#[test]
fn a_fence_ends_what_is_in_flight_only_where_it_is_promised() {
    let mut bench = Bench::mode(CacheMode::WriteBack);
    bench.submit(0, WRITE, A);
    assert!(!bench.disk.handles()[0].cancel_in_flight());
    assert!(!bench.disk.is_idle());
    let mut bench = Bench::new(DiskConfig { cancels: true, ..DiskConfig::new(CacheMode::WriteBack) });
    bench.submit(0, WRITE, A);
    assert!(bench.disk.handles()[0].cancel_in_flight());
    assert!(bench.disk.is_idle());
    bench.can_hold(&[INITIAL, A]);
}

#[derive(Clone, Copy, Debug)]
enum Doing {
    Submit { handle: usize, op: u8, value: u8 },
    Complete { pick: usize },
    Poll { handle: usize },
}

fn doings() -> impl Strategy<Value = std::vec::Vec<Doing>> {
    let one = prop_oneof![
        (0..2_usize, 0..4_u8, 1..60_u8).prop_map(|(handle, op, value)| Doing::Submit { handle, op, value }),
        (0..8_usize).prop_map(|pick| Doing::Complete { pick }),
        (0..2_usize).prop_map(|handle| Doing::Poll { handle }),
    ];
    proptest::collection::vec(one, 0..60)
}

proptest! {
    #[test]
    fn what_a_read_returns_can_survive_and_a_flush_of_a_quiet_disk_leaves_nothing_else(
        doings in doings(),
        mode in 0..4_usize,
    ) {
        let config = DiskConfig { handles: 2, depth: 64, ..DiskConfig::new(CacheMode::ALL[mode]) };
        let mut bench = Bench::new(config);
        for doing in doings {
            match doing {
                Doing::Submit { handle, op, value } => {
                    let extent = Extent::new(0, 1 + u64::from(value % 2));
                    let op = match op {
                        0 | 1 => Op::Write { extent, fua: false },
                        2 => Op::WriteZeroes { extent, may_unmap: true },
                        _ => Op::Flush,
                    };
                    bench.submit(handle, op, value);
                }
                Doing::Complete { pick } => {
                    let count = bench.disk.in_flight().len();
                    let picked = bench.disk.in_flight().get(pick % count.max(1)).copied();
                    if let Some((handle, index, _)) = picked {
                        bench.disk.complete(&bench.memory, handle, index, Fate::Succeeds);
                    }
                }
                Doing::Poll { handle } => {
                    bench.poll(handle);
                }
            }
            for sector in 0..TRACKED {
                prop_assert!(bench.disk.reachable(sector).contains(bench.disk.live(sector)));
            }
        }
        while let Some(&(handle, ..)) = bench.disk.in_flight().first() {
            bench.disk.complete(&bench.memory, handle, 0, Fate::Succeeds);
        }
        while bench.poll(0).is_some() || bench.poll(1).is_some() {}
        bench.run(Op::Flush, 0).unwrap();
        for sector in 0..TRACKED {
            prop_assert_eq!(bench.disk.reachable(sector), ValueSet::of(bench.disk.live(sector)));
        }
    }
}

#[test]
fn a_hold_keeps_the_writes_of_other_handles_waiting_and_no_read() {
    let mut bench = Bench::new(DiskConfig { handles: 2, ..DiskConfig::new(CacheMode::None) });
    let hold = bench.submit(0, Op::Hold { extent: FIRST }, 0);
    let other = bench.submit(1, WRITE, A);
    assert!(bench.disk.can_complete(1, 0), "until it is granted");
    bench.complete(hold, Fate::Succeeds);
    bench.poll(0).unwrap().unwrap();
    assert!(!bench.disk.can_complete(1, 0) && bench.disk.is_stuck());
    bench.submit(1, Op::Hold { extent: Extent::new(0, 2) }, 0);
    bench.submit(1, Op::Write { extent: Extent::new(1, 1), fua: false }, A);
    bench.submit(1, Op::Read { extent: Extent::new(1, 0) }, 0);
    let can: Vec<_> = (0..4).map(|index| bench.disk.can_complete(1, index)).collect();
    assert_eq!(can, [false, false, true, true]);
    let own = bench.submit(0, WRITE, B);
    bench.complete(own, Fate::Succeeds);
    assert_eq!(bench.disk.live(0), B, "the holder's own go on");
    bench.disk.handles()[0].release_hold(hold.slot);
    bench.complete(other, Fate::Succeeds);
    assert_eq!(bench.disk.live(0), A);
}

#[test]
fn a_hold_is_not_granted_at_once_while_another_lasts() {
    let mut bench = Bench::new(DiskConfig { handles: 2, ..DiskConfig::new(CacheMode::None) });
    bench.disk.choose(AtOnce { mask: 3, fails: false });
    for handle in [0, 1] {
        bench.submit(handle, Op::Hold { extent: FIRST }, 0);
    }
    let choices = bench.disk.take_choices();
    assert!(choices.void && choices.done.len() == 1);
}

#[test]
fn a_record_is_the_old_one_or_the_new_one() {
    const KEY: StateKey = StateKey(7);
    const STORE: Op = Op::StoreState { key: KEY };
    let mut bench = Bench::mode(CacheMode::WriteBack);
    let (memory, tag) = (SimMemory::new(), |slot| Tag { slot, generation: 0 });
    let of = |value| [Segment::Guest { addr: layout::source(value), len: 512 }];
    let store = |bench: &mut Bench, slot, value, fate| {
        let _ = bench.disk.handles()[0].submit(&memory, tag(slot), STORE, &of(value)).unwrap();
        let before = bench.disk.reachable_record(KEY);
        bench.complete(tag(slot), fate);
        (before, bench.poll(0).unwrap())
    };
    assert_eq!(store(&mut bench, 0, A, Fate::Succeeds), (vec![vec![], vec![A; 512]], Ok(())));
    assert_eq!(bench.disk.reachable_record(KEY), [[A; 512]], "without a flush");
    let load = [Segment::Guest { addr: layout::sink(0), len: 512 }];
    let _ = bench.disk.handles()[0].submit(&bench.memory, tag(1), Op::LoadState { key: KEY }, &load).unwrap();
    bench.complete(tag(1), Fate::Succeeds);
    bench.poll(0).unwrap().unwrap();
    let mut read = [0; 512];
    bench.memory.read(layout::sink(0), &mut read).unwrap();
    assert_eq!(read, [A; 512]);
    let failed = store(&mut bench, 2, B, Fate::Fails);
    assert_eq!(failed, (vec![vec![A; 512], vec![B; 512]], Err(IoErrorKind::Medium)));
    assert_eq!(bench.disk.reachable_record(KEY).len(), 2, "either may be there");
    assert_eq!(bench.run(Op::Flush, 0), Err(IoErrorKind::Latched));
}
