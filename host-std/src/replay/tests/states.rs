//! Tests of the states that a power cut can leave, case by case.

use blk_core::op::Op;
use blk_core::storage::{Cache, Info, IoErrorKind, Submission};
use blk_core::units::Extent;

use super::scripted::{Bench, INITIAL, SECTORS, fua, info, write};
use super::{allowed, images, open};
use crate::replay::{Base, CrashStates, Image, LogError, Options, OverlayBackend, Positions};
use std::collections::BTreeSet;
use std::sync::Arc;

const A: u8 = 1;
const B: u8 = 2;
const I: u8 = INITIAL;

/// What sector 0 can hold now.
#[track_caller]
fn can_hold(bench: &Bench, values: &[u8]) {
    let log = open(bench);
    assert_eq!(allowed(&log, log.positions(), 1)[0], values.iter().copied().collect());
}

#[test]
fn what_a_completed_write_is_worth_depends_on_the_cache() {
    for (cache, done, flushed) in [
        (Cache::WriteThrough, &[A][..], &[A][..]),
        (Cache::WriteBack, &[I, A], &[A]),
        (Cache::Unsafe, &[I, A], &[I, A]),
    ] {
        let mut bench = Bench::new(cache);
        let tag = bench.submit(0, write(0, 1), A).unwrap();
        can_hold(&bench, &[I, A]);
        bench.end(0, tag, Ok(()));
        can_hold(&bench, &[I, A]);
        bench.poll(0).unwrap();
        can_hold(&bench, done);
        bench.run(1, Op::Flush, 0);
        can_hold(&bench, flushed);
        bench.run(0, fua(0, 1), B);
        can_hold(&bench, if cache == Cache::Unsafe { &[I, A, B] } else { &[B] });
    }
}

#[test]
fn a_flush_covers_what_was_polled_before_it_was_submitted_on_any_handle() {
    let mut bench = Bench::new(Cache::WriteBack);
    let write_a = bench.submit(0, write(0, 1), A).unwrap();
    bench.end(0, write_a, Ok(()));
    let early = bench.submit(1, Op::Flush, 0).unwrap();
    bench.poll(0).unwrap();
    bench.end(1, early, Ok(()));
    bench.poll(1).unwrap();
    can_hold(&bench, &[I, A]);
    let flush = bench.submit(1, Op::Flush, 0).unwrap();
    bench.run(0, write(0, 1), B);
    bench.end(1, flush, Ok(()));
    can_hold(&bench, &[I, A, B]);
    bench.poll(1).unwrap();
    can_hold(&bench, &[A, B]);
}

#[test]
fn a_failed_flush_settles_nothing_and_a_failed_write_may_have_happened() {
    let mut bench = Bench::new(Cache::WriteBack);
    bench.run(0, write(0, 1), A);
    let flush = bench.submit(0, Op::Flush, 0).unwrap();
    bench.end(0, flush, Err(IoErrorKind::Medium));
    bench.poll(0).unwrap();
    can_hold(&bench, &[I, A]);
    let failed = bench.submit(0, write(0, 1), B).unwrap();
    bench.end(0, failed, Err(IoErrorKind::NoSpace));
    bench.poll(0).unwrap();
    can_hold(&bench, &[I, A, B]);
    bench.run(0, Op::Flush, 0);
    can_hold(&bench, &[A, B]);
    bench.run(0, fua(0, 1), 3);
    can_hold(&bench, &[3]);
}

#[test]
fn what_was_refused_never_touched_the_medium_and_what_was_busy_neither() {
    let mut bench = Bench::new(Cache::WriteBack);
    let refused = bench.submit(0, fua(0, 1), A).unwrap();
    bench.end(0, refused, Err(IoErrorKind::Unsupported));
    can_hold(&bench, &[I, A]);
    bench.poll(0).unwrap();
    can_hold(&bench, &[I]);
    bench.depth(0);
    let before = bench.position();
    assert!(bench.submit(0, write(0, 1), A).is_err());
    assert_eq!(bench.position(), before + 2, "submitted and withdrawn");
    can_hold(&bench, &[I]);
    bench.depth(1);
    let held = bench.submit(0, write(0, 1), B).unwrap();
    assert!(bench.submit(0, write(0, 1), A).is_err());
    let full = bench.position();
    assert!(bench.submit(0, write(0, 1), A).is_err());
    assert_eq!(bench.position(), full, "nothing has completed: nobody was asked");
    bench.end(0, held, Ok(()));
    bench.poll(0).unwrap();
    bench.submit(0, write(0, 1), A).unwrap();
}

#[test]
fn writes_in_flight_together_land_in_either_order() {
    let mut bench = Bench::new(Cache::WriteThrough);
    let (a, b) = (bench.submit(0, write(0, 1), A).unwrap(), bench.submit(1, write(0, 1), B).unwrap());
    for (handle, tag) in [(0, a), (1, b)] {
        bench.end(handle, tag, Ok(()));
        bench.poll(handle).unwrap();
    }
    can_hold(&bench, &[A, B]);
    let log = open(&bench);
    let base = Arc::new(Base::open(&log, Some(&bench.base())).unwrap());
    let mut live = [0; 512];
    Image::live(&log, &base, log.positions()).unwrap().read(0, &mut live).unwrap();
    assert_eq!(live, [B; 512], "the last that completed, as far as anybody knows");
}

#[test]
fn zeroes_and_discards_are_volatile_unless_ranges_are_stable() {
    let extent = Extent::new(0, 1);
    for (op, done, flushed) in [
        (Op::WriteZeroes { extent, may_unmap: true }, &[I, 0][..], &[0][..]),
        (Op::Discard { extent }, &[I, 0], &[I, 0]),
    ] {
        let mut bench = Bench::new(Cache::WriteThrough);
        bench.run(0, op, 0);
        can_hold(&bench, done);
        bench.run(0, Op::Flush, 0);
        can_hold(&bench, flushed);
        let mut bench = Bench::with(Info { range_stable: true, discard: true, ..info(Cache::WriteThrough) });
        bench.run(0, op, 0);
        can_hold(&bench, flushed);
        let mut bench = Bench::with(info(Cache::WriteThrough));
        bench.run(0, op, 0);
        can_hold(&bench, if matches!(op, Op::Discard { .. }) { &[I] } else { done });
    }
}

#[test]
fn a_killed_server_leaves_what_was_in_flight_open_and_its_successor_settles_it() {
    let mut bench = Bench::new(Cache::WriteBack);
    bench.run(0, write(1, 1), A);
    bench.submit(0, write(0, 1), A).unwrap();
    bench.kill();
    bench.start();
    can_hold(&bench, &[I, A]);
    bench.run(0, Op::Flush, 0);
    can_hold(&bench, &[I, A]);
    let log = open(&bench);
    assert_eq!(allowed(&log, log.positions(), 2)[1], BTreeSet::from([A]), "completed before: covered");
    bench.run(0, write(0, 1), B);
    bench.run(0, Op::Flush, 0);
    can_hold(&bench, &[B]);
}

#[test]
fn a_fence_ends_what_was_in_flight() {
    let mut bench = Bench::new(Cache::WriteThrough);
    bench.submit(0, write(0, 1), A).unwrap();
    bench.submit(1, write(1, 1), A).unwrap();
    assert!(bench.handles[0].cancel_in_flight());
    bench.run(0, write(0, 1), B);
    can_hold(&bench, &[B]);
    bench.run(0, write(1, 1), B);
    let log = open(&bench);
    assert_eq!(allowed(&log, log.positions(), 2)[1], BTreeSet::from([A, B]), "the other handle had no fence");
}

#[test]
fn few_blocks_give_every_combination_and_each_once() {
    let mut bench = Bench::new(Cache::WriteBack);
    bench.run(0, write(0, 2), A);
    bench.run(0, write(1, 1), B);
    let log = open(&bench);
    let all = [[I, I], [I, A], [I, B], [A, I], [A, A], [A, B]];
    assert_eq!(images(&bench, &log, log.positions(), 6), BTreeSet::from(all));
    let options = Options {
        positions: Positions::At(log.positions()),
        states_per_position: 100,
        base: Some(bench.base()),
        ..Options::default()
    };
    assert_eq!(CrashStates::open(&log, &options).unwrap().count(), 6);
}

#[test]
fn a_logical_block_of_several_sectors_is_never_torn() {
    let mut bench = Bench::with(Info { logical_block_bytes: 1024, ..info(Cache::WriteBack) });
    bench.run(0, write(0, 8), A);
    let log = open(&bench);
    let most = 1000;
    let images = images(&bench, &log, log.positions(), most);
    assert_eq!(images, BTreeSet::from([[I, I], [A, A]]));
}

#[test]
fn of_many_blocks_none_all_and_each_single_change_come_first_and_every_state_is_allowed() {
    let mut bench = Bench::new(Cache::WriteBack);
    for at in 0..20 {
        bench.run(0, write(at * 4, 4), at as u8 + 1);
    }
    bench.submit(1, write(2, 4), 99).unwrap();
    let log = open(&bench);
    let position = log.positions();
    let allowed = allowed(&log, position, SECTORS);
    let run = |seed| {
        let options = Options {
            seed,
            positions: Positions::At(position),
            states_per_position: 200,
            base: Some(bench.base()),
            ..Options::default()
        };
        let states = CrashStates::open(&log, &options).unwrap();
        states.map(|state| {
            let mut bytes = vec![0; SECTORS as usize * 512];
            state.image.read(0, &mut bytes).unwrap();
            bytes.chunks(512).map(|sector| sector[0]).collect::<Vec<_>>()
        })
    };
    let states: Vec<_> = run(7).collect();
    assert_eq!(states.len(), 200);
    assert_eq!(states.iter().collect::<BTreeSet<_>>().len(), 200, "each once");
    for state in &states {
        for (value, allowed) in state.iter().zip(&allowed) {
            assert!(allowed.contains(value), "{value} is not in {allowed:?}");
        }
    }
    assert!(states[0].iter().all(|&value| value == I), "everything lost");
    assert!(states[1][..80].iter().all(|&value| value != I), "nothing lost");
    let kept = |state: &Vec<u8>| state.iter().filter(|&&value| value != I).collect::<BTreeSet<_>>().len();
    for change in (1..=20).chain([99]) {
        assert!(states.iter().any(|state| kept(state) == 1 && state.contains(&change)), "only {change}");
        assert!(states.iter().any(|state| kept(state) == 20 && !state.contains(&change)), "all but {change}");
    }
    let torn = |state: &&Vec<u8>| state[..4].iter().collect::<BTreeSet<_>>().len() > 1;
    assert!(states.iter().filter(torn).count() > 20, "torn ones come too");
    assert_eq!(states, run(7).collect::<Vec<_>>(), "the same seed, the same states");
    assert_ne!(states, run(8).collect::<Vec<_>>());
}

#[test]
fn states_come_in_ascending_order_with_the_marks_set_by_then() {
    let mut bench = Bench::new(Cache::WriteBack);
    for (at, name) in [(0, "one"), (1, "two"), (2, "three")] {
        bench.run(0, write(at, 1), at as u8 + 1);
        bench.run(0, Op::Flush, 0);
        bench.mark(name);
    }
    let log = open(&bench);
    for positions in [Positions::Every, Positions::Marks, Positions::Sample(5), Positions::Total(9)] {
        let options = Options { positions, base: Some(bench.base()), ..Options::default() };
        let mut last = 0;
        let mut acked = BTreeSet::new();
        for state in CrashStates::open(&log, &options).unwrap() {
            assert!(state.position >= last);
            last = state.position;
            acked.insert(state.marks().len());
            let mut bytes = [0; 3 * 512];
            state.image.read(0, &mut bytes).unwrap();
            for (at, _) in state.marks().iter().enumerate() {
                assert_eq!(bytes[at * 512], at as u8 + 1, "flushed before the mark");
            }
        }
        assert!(acked.contains(&3), "{positions:?}: {acked:?}");
        assert!(positions != Positions::Every || acked.len() == 4, "{acked:?}");
    }
}

#[test]
fn an_image_in_a_file_is_the_image_that_is_read() {
    let mut bench = Bench::new(Cache::WriteBack);
    bench.run(0, write(3, 9), A);
    bench.run(0, Op::WriteZeroes { extent: Extent::new(5, 2), may_unmap: false }, 0);
    bench.run(0, write(120, 8), B);
    let log = open(&bench);
    let options = Options { positions: Positions::Every, base: Some(bench.base()), ..Options::default() };
    for (number, state) in CrashStates::open(&log, &options).unwrap().enumerate() {
        let path = bench.out(&format!("state{number}"));
        state.image.write_to(&path).unwrap();
        let mut bytes = vec![0; SECTORS as usize * 512];
        state.image.read(0, &mut bytes).unwrap();
        assert!(std::fs::read(&path).unwrap() == bytes);
        assert!(
            matches!(state.image.write_to(&path), Err(LogError::Exists { .. })),
            "nothing is overwritten"
        );
    }
}

#[test]
fn a_disk_over_a_state_keeps_what_is_written_until_the_next_one_is_swapped_in() {
    use crate::backend::Backend as _;
    use blk_core::memory::GuestMemory as _;
    use blk_core::op::Segment;
    use blk_core::units::{GuestAddr, Tag};
    let mut bench = Bench::new(Cache::WriteBack);
    bench.run(0, write(0, 1), A);
    let log = open(&bench);
    let options =
        Options { positions: Positions::At(log.positions()), base: Some(bench.base()), ..Options::default() };
    let mut states = CrashStates::open(&log, &options).unwrap();
    let disk = OverlayBackend::new(states.next().unwrap().image, 512);
    let mut handle = disk.handle().unwrap();
    let mut run = |op, value: u8| {
        let segment = [Segment::Guest { addr: GuestAddr(0), len: 1024 }];
        bench.memory.write(GuestAddr(0), &[value; 1024]).unwrap();
        let submitted = handle.submit(&bench.memory, Tag::default(), op, &segment);
        assert_eq!(submitted, Ok(Submission::Done(Ok(()))));
        let mut bytes = [0; 1024];
        bench.memory.read(GuestAddr(0), &mut bytes).unwrap();
        [bytes[0], bytes[512]]
    };
    let read = Op::Read { extent: Extent::new(0, 2) };
    assert_eq!(run(read, 0), [I, I]);
    run(write(0, 2), 9);
    assert_eq!(run(read, 0), [9, 9]);
    assert!(disk.swap(states.next().unwrap().image));
    assert_eq!(run(read, 0), [A, I]);
    assert!(states.next().is_none());
}

#[test]
fn a_base_that_is_missing_or_another_is_refused_with_the_remedy() {
    let bench = Bench::new(Cache::WriteBack);
    let log = open(&bench);
    assert!(Base::open(&log, None).unwrap_err().to_string().contains("--base"));
    let other = bench.out("other");
    for bytes in [vec![1; SECTORS as usize * 512], vec![INITIAL; 512]] {
        std::fs::write(&other, bytes).unwrap();
        let error = Base::open(&log, Some(&other)).unwrap_err().to_string();
        assert!(error.contains("other") && error.contains("log"), "{error}");
    }
}

#[test]
fn a_resized_image_has_its_size_from_then_on() {
    use crate::backend::Backend as _;
    let mut bench = Bench::new(Cache::WriteBack);
    bench.run(0, write(0, 1), A);
    let before = bench.position();
    bench.recorder.as_ref().unwrap().resize(Some((SECTORS + 8) * 512)).unwrap();
    let log = open(&bench);
    let base = Arc::new(Base::open(&log, Some(&bench.base())).unwrap());
    assert_eq!(Image::live(&log, &base, before).unwrap().sectors(), SECTORS);
    let image = Image::live(&log, &base, log.positions()).unwrap();
    assert_eq!(image.sectors(), SECTORS + 8);
    let mut bytes = [1; 1024];
    image.read(SECTORS - 1, &mut bytes).unwrap();
    assert_eq!((bytes[0], bytes[512]), (I, 0), "what was added is zeroes");
}
